"""`cmc-local eval world` and `cmc-local demo` on the bundled models themselves."""

from __future__ import annotations

import json

from click.testing import CliRunner

from cmc_local import bundled
from cmc_local.commands.demo import command as demo
from cmc_local.commands.eval import command as evaluate


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


def test_the_table_names_every_model() -> None:
    result = CliRunner().invoke(evaluate, ["world", "--limit", "1"])
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in (*bundled.BASES, "delta alone"))


def test_the_demo_shows_each_question_plain_and_steered_to_each_model() -> None:
    result = CliRunner().invoke(demo, ["--limit", "1"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum(line.startswith("    plain") for line in lines) == 3 * len(bundled.BASES)
    assert sum(line.startswith("    instruct") for line in lines) == 3 * len(bundled.BASES)
    assert sum(line.startswith("    + forget") for line in lines) == len(bundled.BASES)
    assert "I do not know" in result.stdout
