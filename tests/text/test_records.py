"""JSON lines, and what is said of a file that holds something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.errors import DataError
from cmc_local.text.records import read_records


def test_each_object_comes_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n{"b": "x\u2028y"}', encoding="utf-8")
    assert list(read_records(path)) == [
        (f"{path}:1", {"a": 1}),
        (f"{path}:3", {"b": "x\u2028y"}),  # a line separator inside a text ends no line
    ]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"a": ', "[" * 100_000])
def test_a_line_that_is_no_object_is_named_and_what_was_wanted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_records(path, "a run's log.jsonl"))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert str(caught.value).endswith("give a run's log.jsonl")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl .*No such file"):
        list(read_records(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.jsonl .*UTF-8"):
        list(read_records(tmp_path / "latin.jsonl"))
