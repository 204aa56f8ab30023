"""What rows cost: measured once, kept, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_local.base.span import Span
from cmc_local.engine.prompt_lookup import NEVER, RowCosts
from cmc_local.engine.row_costs import ROWS, base_costs, deepened, delta_costs, keep_base_costs
from fakes import A, FakeBase, FakeShift, always


def test_they_are_measured_once_for_a_model(tmp_path: Path) -> None:
    base = FakeBase(always(0, 1, 0, 0, 0))
    first = base_costs(base, "a model", cache_dir=tmp_path)
    assert tuple(first.seconds) == ROWS
    assert set(base.batches) == {(rows,) for rows in ROWS}
    assert base.cache[0] == []
    base.batches.clear()
    assert base_costs(base, "a model", cache_dir=tmp_path) == first
    assert not base.batches
    base_costs(base, "another", cache_dir=tmp_path)
    assert base.batches


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"seconds": {"1": "x"}, "deeper": 0.0}',
        '{"seconds": {"1": 0.0, "2": 1, "4": 1, "8": 1}, "deeper": 0.0}',
        '{"seconds": {"1": 1, "2": 1, "4": 1, "8": 1}}',
    ],
)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: str) -> None:
    source = FakeShift(always(0, 1, 0, 0, 0))
    delta_costs(source, "a delta", cache_dir=tmp_path)
    (kept,) = (tmp_path / "row-costs").iterdir()
    kept.write_text(damage)
    found = delta_costs(source, "a delta", cache_dir=tmp_path)
    assert json.loads(kept.read_text()) == {
        "seconds": {str(n): t for n, t in found.seconds.items()},
        "deeper": 0.0,
    }
    assert source.streams[0] == []


def test_a_folder_that_cannot_be_written_costs_the_measurement_alone(tmp_path: Path) -> None:
    (tmp_path / "row-costs").write_text("in the way")
    costs = delta_costs(FakeShift(always(0, 1, 0, 0, 0)), "a delta", cache_dir=tmp_path)
    assert tuple(costs.seconds) == ROWS


def test_a_model_that_cannot_take_rows_back_never_guesses(tmp_path: Path) -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), truncates=False)
    assert base_costs(base, "a recurrent model", cache_dir=tmp_path) is NEVER
    assert not base.batches


def test_what_a_long_prompt_adds_is_learnt_once(tmp_path: Path) -> None:
    base = FakeBase(always(0, 1, 0, 0, 0))
    assert base_costs(base, "a model", cache_dir=tmp_path).deeper is None
    base.decode_spans([Span(0, 0, [A] * 6)])
    known = deepened(base, RowCosts(dict.fromkeys(ROWS, 1e-9), None), 0, 6)
    assert known.deeper is not None and known.deeper > 0
    assert base.cache[0] == [A] * 6
    free = deepened(base, RowCosts(dict.fromkeys(ROWS, 100.0), None), 0, 6)
    assert free.deeper == 0  # never less than with nothing before
    keep_base_costs("a model", known, cache_dir=tmp_path)
    assert base_costs(base, "a model", cache_dir=tmp_path) == known
