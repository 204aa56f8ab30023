"""Rows and their strengths, results files, and which row serves as the retrained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmc_local.errors import DataError, UsageError
from cmc_local.evaluate.results import (
    ResultRow,
    Strength,
    data_key,
    document,
    forget_ratios,
    read_results,
    spread,
    strengths,
)
from cmc_local.files import write_json


def row(**changes: Any) -> ResultRow:
    given: dict[str, Any] = {
        "task": "tofu",
        "model": "m",
        "vocabulary": 5,
        "arm": "plain",
        "adapter": None,
        "alpha": 0.0,
        "metrics": {"model_utility": 0.5},
        "count": 2,
        "command": "cmc-local eval tofu",
    }
    return ResultRow(**{**given, **changes})


def test_without_a_word_the_rows_are_plain_and_the_adapters_own() -> None:
    plain, own = strengths({"x": 0.8}, None)
    assert (plain.alphas, plain.alpha, plain.adapter, plain.key) == ({"x": 0.0}, 0.0, None, "plain")
    assert (own.alphas, own.alpha, own.adapter, own.key) == ({"x": 0.8}, 0.8, "x", "x=0.8")


def test_without_an_adapter_there_is_the_plain_row_alone() -> None:
    assert [one.key for one in strengths({}, None)] == ["plain"]
    assert [one.key for one in strengths({}, [0.0])] == ["plain"]
    with pytest.raises(UsageError, match="--adapter"):
        strengths({}, [0.0, 0.5])


def test_a_number_goes_to_every_adapter_and_equal_rows_are_one() -> None:
    found = strengths({"x": 1.0, "y": 0.5}, [0.0, 0.5, 0.5])
    assert [one.alphas for one in found] == [{"x": 0.0, "y": 0.0}, {"x": 0.5, "y": 0.5}]
    assert found[1].adapter == "x+y"


def test_own_strengths_that_differ_have_no_one_number() -> None:
    both, one = Strength({"x": 1.0, "y": 0.5}), Strength({"x": 1.0, "y": 0.0})
    assert (both.alpha, both.given, both.key) == (None, None, "x=1+y=0.5")
    assert (one.alpha, one.given, one.adapter) == (1.0, None, "x")  # --alphas 1 would switch y on


def test_results_survive_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, document([row(), row(items={"forget10": (0.1, 1 / 3)})]))
    rows = read_results(path)["rows"]
    assert "items" not in rows[0]
    assert rows[1]["items"] == {"forget10": [0.1, 1 / 3]}
    assert rows[0]["metrics"] == {"model_utility": 0.5}


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"format": 2, "rows": []}'])
def test_a_file_that_is_no_results_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"r\.json "):
        read_results(path)


def test_the_retrained_row_is_the_only_one_or_the_one_of_that_arm(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    mine, other = row(items={"forget10": [0.5]}), row(arm="retrained", items={"forget10": [0.7]})
    write_json(path, document([row(), mine]))
    assert forget_ratios(path, "forget10") == [0.5]
    write_json(path, document([mine, other]))
    assert forget_ratios(path, "forget10") == [0.7]
    write_json(path, document([mine, mine]))
    with pytest.raises(DataError, match="0 rows to compare the forget set forget10 with"):
        forget_ratios(path, "forget10")
    with pytest.raises(DataError, match="0 rows to compare the forget set forget05 with"):
        forget_ratios(path, "forget05")
    path.write_text(json.dumps({"format": 1, "rows": [{"items": {"forget10": ["x"]}}]}))
    with pytest.raises(DataError, match="no numbers"):
        forget_ratios(path, "forget10")


@pytest.mark.parametrize("rows", [5, [3], [{"items": None}], [{"items": [1]}]])
def test_rows_that_are_none_hold_no_retrained_model(tmp_path: Path, rows: Any) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": 1, "rows": rows}))
    with pytest.raises(DataError, match="0 rows to compare"):
        forget_ratios(path, "forget10")


def test_the_same_settings_have_one_key() -> None:
    one = {"data": {"bytes": 3}, "limit": None}
    assert data_key(one) == data_key({"limit": None, "data": {"bytes": 3}})
    assert data_key(one) != data_key({**one, "limit": 3})


def test_a_limit_is_spread_over_the_whole_list() -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread(list(range(3)), 5) == spread(list(range(3)), None) == [0, 1, 2]
    assert len(set(spread(list(range(805)), 100))) == 100
