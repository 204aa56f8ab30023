"""AlpacaEval's JSON, in and out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.errors import DataError
from cmc_local.evaluate.alpaca import outputs, read_instructions


def test_an_output_takes_the_references_place_and_the_data_set_stays(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text('[{"instruction": "Hi", "output": "ref", "dataset": "koala"}]', "utf-8")
    (entry,) = read_instructions(path)
    assert outputs([(entry, "Hello.")], "tiny") == [
        {"instruction": "Hi", "output": "Hello.", "generator": "tiny", "dataset": "koala"}
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", '["Hi"]', '[{"instruction": " "}]'])
def test_what_is_no_list_of_instructions_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"e\.json.*instruction"):
        read_instructions(path)
