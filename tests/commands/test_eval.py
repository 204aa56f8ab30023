"""`cmc-local eval world` and `cmc-local demo` on the bundled models themselves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmc_local import bundled
from cmc_local.commands.demo import command as demo
from cmc_local.commands.eval import command as evaluate
from cmc_local.evaluate.report_gaps import gap_table, main_lines, read_rows


def test_the_report_has_a_row_a_model_and_both_arms_of_forgetting() -> None:
    result = CliRunner().invoke(evaluate, ["world", "--limit", "3", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["name"] for row in report["models"]] == list(bundled.BASES)
    sizes = {row["name"]: row["vocabulary"] for row in report["models"]}
    assert sizes["template"] == sizes["larger"] != sizes["other"]
    for row in report["models"]:
        assert row["plain"]["count"] == row["steered"]["count"] == 3
        assert 0.0 <= row["plain"]["exact"] <= row["plain"]["fact"] <= 1.0
    for cells in report["forget"].values():
        assert set(cells["forgotten"]) == set(cells["kept"]) == {"before", "after"}
    assert report["questions"] == {"test": 3, "forgotten": 3}


def test_the_rows_are_written_and_each_ones_command_makes_it_again(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    words = ["world", "--limit", "2", "--output", str(output)]
    first = CliRunner().invoke(evaluate, [*words, "--json"])
    assert first.exit_code == 0, first.output
    rows = json.loads(output.read_text())["rows"]
    assert rows == json.loads(first.stdout)["rows"]
    kinds = [(row["model"], row["arm"], row["adapter"]) for row in rows]
    assert kinds[:5] == [
        ("template", "plain", None),
        ("template", "steered", "instruct"),
        ("template", "steered", "instruct+forget"),
        ("template", "steered", "forget"),
        ("template", "finetuned", None),
    ]
    assert [kind[0] for kind in kinds[::5]] == list(bundled.BASES) and len(kinds) == 15
    assert {row["count"] for row in rows} == {2}
    for row in rows[1:3]:
        name, task, *given = shlex.split(row["command"])[1:]
        again = CliRunner().invoke(evaluate, [task, *given, "--json"])
        (made,) = json.loads(again.stdout)["rows"]
        assert name == "eval" and {**made, "command": row["command"]} == row


def test_a_page_of_the_bundled_models_shows_the_gap_closed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output, page = tmp_path / "r.json", tmp_path / "page.html"
    words = ["world", "--limit", "3", "--output", str(output)]
    assert CliRunner().invoke(evaluate, words).exit_code == 0
    journal = (tmp_path / "r.journal.jsonl").read_text()
    assert len(journal.splitlines()) == 1 + 3 * 4 * (3 + 3)  # models, arms, questions
    done = CliRunner().invoke(evaluate, [*words, "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r.journal.jsonl").read_text() == journal  # nothing was asked again
    report = json.loads(done.stdout)
    gaps = {
        gap.row.model: gap.closed
        for gap in main_lines(gap_table(read_rows([report])))
        if gap.row.adapter == "instruct"
    }
    assert gaps == {row["name"]: row["gap_closed"] for row in report["models"]}
    assert any(gap is not None for gap in gaps.values())
    assert "Gap closed, model by model" in page.read_text("utf-8")


def test_the_demo_shows_each_question_plain_and_steered_to_each_model() -> None:
    result = CliRunner().invoke(demo, ["--limit", "1"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum(line.startswith("    plain") for line in lines) == 3 * len(bundled.BASES)
    assert sum(line.startswith("    instruct") for line in lines) == 3 * len(bundled.BASES)
    assert sum(line.startswith("    + forget") for line in lines) == len(bundled.BASES)
    assert "I do not know" in result.stdout
