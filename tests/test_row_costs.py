"""What rows cost: measured once, kept, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_local.row_costs import ROWS, base_costs, delta_costs
from cmc_local.speculation import NEVER
from fakes import FakeBase, FakeShift, always


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


@pytest.mark.parametrize("damage", ["", "[]", '{"1": "x"}', '{"1": 0.0, "2": 1, "4": 1, "8": 1}'])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: str) -> None:
    source = FakeShift(always(0, 1, 0, 0, 0))
    delta_costs(source, "a delta", cache_dir=tmp_path)
    (kept,) = (tmp_path / "row-costs").iterdir()
    kept.write_text(damage)
    found = delta_costs(source, "a delta", cache_dir=tmp_path)
    assert json.loads(kept.read_text()) == {str(n): t for n, t in found.seconds.items()}
    assert source.streams[0] == []


def test_a_folder_that_cannot_be_written_costs_the_measurement_alone(tmp_path: Path) -> None:
    (tmp_path / "row-costs").write_text("in the way")
    costs = delta_costs(FakeShift(always(0, 1, 0, 0, 0)), "a delta", cache_dir=tmp_path)
    assert tuple(costs.seconds) == ROWS


def test_a_model_that_cannot_take_rows_back_never_guesses(tmp_path: Path) -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), truncates=False)
    assert base_costs(base, "a recurrent model", cache_dir=tmp_path) is NEVER
    assert not base.batches
