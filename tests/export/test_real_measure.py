"""A cell measured by the runner; the bundled models stand in for the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmc_export.real import data, forgetting, measure
from cmc_export.real.measure import Sizes
from cmc_export.real.places import MODELS, Cell
from cmc_local.errors import UsageError

SIZES = Sizes(test=2, nll=3, choose=2, max_tokens=6, parallel=2, threads=1)
PLAIN = Cell("style", "smollm2", "plain")


@pytest.fixture
def runs(bundled_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with the style's data; the three bases are the bundled template."""
    for name in MODELS.values():
        (tmp_path / name).symlink_to(bundled_models / "template.gguf")
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    place = tmp_path / "runs"
    data.write_data(place, "style")
    return place


def result(cell: Cell, runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cell.result(runs).read_text())
    return found


def test_a_plain_cell_has_its_figures_items_and_command(runs: Path) -> None:
    measure.measure(PLAIN, runs, SIZES, print)
    found = result(PLAIN, runs)
    (row,) = found["rows"]
    assert len(row["replies"]) == len(row["items"]["rules"]) == SIZES.test
    assert len(row["items"]["nats"]) == SIZES.nll
    nats, tokens = sum(row["items"]["nats"]), sum(row["items"]["answer_tokens"])
    assert row["metrics"]["nll"] == pytest.approx(nats / tokens)
    assert row["metrics"]["tokens"] <= SIZES.max_tokens
    assert row["metrics"]["seconds_per_token"] > 0
    assert "--tasks style --bases smollm2 --arms plain" in found["command"]


def test_a_result_that_is_there_is_not_measured_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLAIN.result(runs).parent.mkdir(parents=True)
    PLAIN.result(runs).write_text("{}")
    monkeypatch.setenv("CMC_REAL", "/nowhere")
    measure.measure(PLAIN, runs, SIZES, print)
    assert PLAIN.result(runs).read_text() == "{}"


def test_a_stopped_measurement_goes_on_from_its_journal(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure.measure(PLAIN, runs, SIZES, print)
    whole = result(PLAIN, runs)
    PLAIN.result(runs).unlink()  # as if killed before the result was written

    def answers(model: object, prompts: list[Any], *rest: Any, **more: Any) -> Any:
        assert not prompts, "a reply that the journal holds is not written again"
        return iter(())

    monkeypatch.setattr(measure, "answers", answers)
    measure.measure(PLAIN, runs, SIZES, print)
    assert result(PLAIN, runs) == whole


def test_prompting_takes_what_validation_says(runs: Path) -> None:
    cell = Cell("style", "qwen25", "prompted")
    measure.measure(cell, runs, SIZES, print)
    found = result(cell, runs)
    reached = {one["help"]: one["rules"] for one in found["tried"]}
    assert len(reached) == 9
    assert reached[found["help"]["name"]] == max(reached.values())


def test_a_delta_is_measured_at_one_and_at_its_tuned_strength(
    runs: Path, bundled_models: Path
) -> None:
    (runs / "style/delta.gemma3.0.adapter").symlink_to(bundled_models / "instruct")
    cell = Cell("style", "gemma3", "delta-gemma3", 0)
    measure.measure(cell, runs, SIZES, print)
    found = result(cell, runs)
    assert [one["alpha"] for one in found["tried"]] == [*measure.ALPHAS]
    best = max(found["tried"], key=lambda one: (one["rules"], -one["nll"]))
    assert found["tuned"] == best["alpha"]
    assert [row["alpha"] for row in found["rows"]] == [*dict.fromkeys((1.0, best["alpha"]))]


def test_a_further_seed_may_take_the_strength_of_the_first(
    runs: Path, bundled_models: Path
) -> None:
    (runs / "style/delta.gemma3.1.adapter").symlink_to(bundled_models / "instruct")
    cell = Cell("style", "gemma3", "delta-gemma3", 1)
    with pytest.raises(UsageError, match="measure seed 0 first"):
        measure.measure(cell, runs, SIZES, print, alpha_of=0)
    first = Cell("style", "gemma3", "delta-gemma3", 0).result(runs)
    first.write_text('{"tuned": 0.25}')
    measure.measure(cell, runs, SIZES, print, alpha_of=0)
    found = result(cell, runs)
    assert [row["alpha"] for row in found["rows"]] == [1.0, 0.25]
    assert (found["tuned"], found["alpha_of"]) == (0.25, 0)
    assert "--alpha-of 0" in found["command"]


def test_forgetting_asks_both_sides_in_a_phrasing_of_its_own(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = forgetting.facts.all_facts()[:6]
    monkeypatch.setattr(forgetting.facts, "all_facts", lambda: every)
    monkeypatch.setattr(forgetting, "LEAST_KNOWN", 1)
    for base in MODELS:
        forgetting.known_file(runs, base).parent.mkdir(parents=True, exist_ok=True)
        keys = [one.key for one in every]
        forgetting.known_file(runs, base).write_text(json.dumps({"known": keys}))
    forgetting.write_data(runs, tuple(MODELS))
    cell = Cell("forget", "smollm2", "plain")
    forgetting.measure(cell, runs, SIZES, print)
    (row,) = result(cell, runs)["rows"]
    assert (len(row["items"]["missed"]), len(row["items"]["kept"])) == (2, 2)
    shares = row["metrics"]
    assert shares["both"] == (shares["missed"] + shares["kept"]) / 2
    journal = (runs / "results/forget/smollm2.plain.journal.jsonl").read_text()
    assert f'"part": "{forgetting.TESTED} own' in journal
