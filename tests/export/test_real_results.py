"""Result files -> the table: seeds together, a delta against its rivals, the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmc_export.real import results, table
from cmc_local.errors import DataError


def put(runs: Path, arm: str, values: list[float], seed: int = 0, **more: Any) -> None:
    """A result of the label task on Gemma; `more` may hold tuned and a second row's values."""
    second = more.pop("second", None)
    rows = [row(values, 1.0), *([row(second, more["tuned"])] if second else [])]
    if not arm.startswith("delta"):
        del rows[0]["alpha"]
    path = runs / f"results/label/gemma3.{arm}.{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "format": 1,
        "task": "label",
        "base": "gemma3",
        "arm": arm,
        "seed": seed,
        "command": f"python -m cmc_export.real measure --arms {arm} --seeds {seed}",
        "rows": rows,
        **more,
    }
    path.write_text(json.dumps(document))


def row(values: list[float], alpha: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    metrics = {"exact": mean, "within": 1.0, "nll": 2.0, "tokens": 3.0, "cut_off": 0.0}
    return {
        "alpha": alpha,
        "metrics": {**metrics, "refusals": 0.0, "seconds_per_token": 0.02},
        "items": {"exact": values},
    }


def lines(runs: Path) -> list[results.Line]:
    return results.lines(results.outcomes(results.read(runs)))


def test_a_delta_above_prompting_meets_the_aim(tmp_path: Path) -> None:
    put(tmp_path, "prompted", [0.0] * 10, help={"name": "system 2"})
    put(tmp_path, "delta-gemma3", [1.0] * 10, tuned=1.0)
    prompted, delta = lines(tmp_path)
    assert prompted.outcome.label == "prompted (system 2)"
    assert (prompted.verdict, prompted.beats) == ("", None)
    assert delta.outcome.label == "delta beside Gemma, alpha 1"
    assert delta.verdict == "met (+1.000)"
    assert results.beaten(lines(tmp_path), at_home=True) == (1, 1)
    assert results.beaten(lines(tmp_path), at_home=False) == (0, 0)


def test_one_below_it_does_not_and_noise_is_called_so(tmp_path: Path) -> None:
    put(tmp_path, "prompted", [0.0, 1.0, 1.0, 1.0])
    put(tmp_path, "delta-gemma3", [1.0, 0.0, 1.0, 0.0], tuned=1.0)
    delta = lines(tmp_path)[-1]
    assert delta.verdict == "not met (-0.250, within the noise)"
    assert results.beaten(lines(tmp_path), at_home=True) == (0, 1)


def test_one_fixed_delta_at_its_tuned_strength_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "prompted", [0.5] * 4)
    put(tmp_path, "delta-smollm2", [1.0] * 4, tuned=1.0)
    made = lines(tmp_path)
    assert results.beaten(made, at_home=False) == results.beaten(made, at_home=True) == (0, 0)
    put(tmp_path, "delta-gemma3", [1.0] * 4, tuned=0.5, second=[0.0] * 4)
    made = lines(tmp_path)
    assert results.beaten(made, at_home=True) == (0, 1)
    assert results.beaten(made, at_home=True, tuned=False) == (1, 1)


def test_seeds_are_one_line_and_a_tuned_strength_another(tmp_path: Path) -> None:
    put(tmp_path, "delta-both", [1.0, 0.0], seed=0, tuned=0.5, second=[1.0, 1.0])
    put(tmp_path, "delta-both", [1.0, 1.0], seed=1, tuned=1.0)
    whole, tuned = lines(tmp_path)
    assert whole.outcome.groups == [[1.0, 0.5]]
    assert whole.outcome.by_seed == (0.5, 1.0)
    assert tuned.outcome.groups == [[1.0, 1.0]]
    assert tuned.outcome.label == "delta beside both, alpha 0.5 to 1 (tuned)"
    assert "±0.354 (2 seeds)" in table.cells(whole)[1]


def test_the_gap_is_the_share_of_what_the_lora_adds(tmp_path: Path) -> None:
    put(tmp_path, "plain", [0.0, 0.0, 0.0, 0.0])
    put(tmp_path, "lora", [1.0, 1.0, 0.0, 0.0])
    put(tmp_path, "delta-gemma3", [1.0, 0.0, 0.0, 0.0], tuned=1.0)
    plain, delta, lora = lines(tmp_path)
    assert (plain.gap, lora.gap) == (None, None)
    assert delta.gap == 0.5
    assert delta.gap_verdict == "0.50 (not met)"


def test_examples_that_are_not_the_same_are_not_compared(tmp_path: Path) -> None:
    put(tmp_path, "prompted", [0.0] * 3)
    put(tmp_path, "delta-gemma3", [1.0] * 4, tuned=1.0)
    assert lines(tmp_path)[-1].verdict == ""


def test_the_page_and_the_markdown_hold_every_line_and_command(tmp_path: Path) -> None:
    put(tmp_path, "prompted", [0.0, 1.0])
    put(tmp_path, "delta-gemma3", [1.0, 1.0], tuned=1.0)
    said: list[str] = []
    table.write(tmp_path, said.append)
    markdown = (tmp_path / "table.md").read_text()
    assert "## A label: Gemma 3 270M" in markdown
    assert "| delta beside Gemma, alpha 1 | 1.000 [1.000, 1.000] |" in markdown
    assert "at its tuned alpha on 1 of 1 (0 of them beyond the noise)" in markdown
    assert "| A label, exact match | Gemma 3 270M | 0.50 | 1.00 | 1.00 (1) |" in markdown
    page = (tmp_path / "report.html").read_text()
    for command in ("--arms prompted --seeds 0", "--arms delta-gemma3 --seeds 0"):
        assert f"python -m cmc_export.real measure {command}" in markdown
        assert f"python -m cmc_export.real measure {command}" in page
    assert said and "2 lines" in said[0]


def test_forgetting_is_the_mean_of_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "results/forget/qwen25.plain.json"
    path.parent.mkdir(parents=True)
    shares = {"both": 0.5, "missed": 0.0, "kept": 1.0}
    items = {"missed": [0.0, 0.0], "kept": [1.0] * 5}
    rows = [{"metrics": shares, "items": items}]
    head = {"format": 1, "task": "forget", "base": "qwen25", "arm": "plain", "seed": 0}
    path.write_text(json.dumps({**head, "command": "x", "rows": rows}))
    (line,) = lines(tmp_path)
    assert line.value.mean == 0.5
    assert table.cells(line)[2] == "missed 0.00, kept 1.00"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results/label/gemma3.plain.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(DataError, match=r"gemma3\.plain\.json"):
        results.read(tmp_path)
    path.write_text('{"format": 9}')
    with pytest.raises(DataError, match="format 1"):
        results.read(tmp_path)


def test_without_results_there_is_no_page_of_the_docs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        table.write_docs(tmp_path, tmp_path / "real.md", print)


def test_what_was_written_by_hand_stays_above_the_tables(tmp_path: Path) -> None:
    put(tmp_path, "plain", [0.0, 1.0])
    target = tmp_path / "real.md"
    table.write_docs(tmp_path, target, lambda line: None)
    made = target.read_text()
    assert made.startswith(f"# Real models\n\n{table.MARK}\n")
    target.write_text(made.replace("# Real models\n", "# Real models\n\nBy hand.\n"))
    table.write_docs(tmp_path, target, lambda line: None)
    assert target.read_text() == made.replace("# Real models\n", "# Real models\n\nBy hand.\n")
