"""`cmc-local bench map` and `align` on the bundled models and on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cmc_local.commands import main


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", *words])


def test_the_bundled_models_are_aligned(bundled_models: Path) -> None:
    done = run("align", "--rounds", "1", "--characters", "200")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["template", "instruct"],
        ["larger", "instruct"],
        ["other", "instruct"],
    ]
    pairs = json.loads(lines[-1])["pairs"]
    assert all(pair["characters"] == 200 for pair in pairs)
    assert all(pair["incremental_vs_full"] > 0 for pair in pairs)


def test_a_pair_of_files_is_aligned_on_a_text(
    tiny_gguf: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "my.txt"
    text.write_text("Helen Blackworth was born in Harborville.")
    words = ("--base", str(tiny_gguf), "--delta", str(tiny_folder / "tokenizer.json"))
    done = run("align", *words, "--text", str(text), "--rounds", "1", "--json")
    assert done.exit_code == 0, done.output
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["base"], pair["delta"]) == ("tiny-F32", "tiny")
    # One vocabulary on both sides: every base token is one of the delta's.
    assert pair["fed_per_token"] == pytest.approx(1, abs=0.1)
    assert str(tmp_path) not in done.stdout


def test_the_bundled_models_are_mapped(
    bundled_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMC_CACHE", str(tmp_path))
    done = run("map", "--base", "template", "--base", "other", "--rounds", "1")
    assert done.exit_code == 0, done.output
    pairs = json.loads(done.stdout.splitlines()[-1])["pairs"]
    assert [(one["base"], one["base_tokens"]) for one in pairs] == [
        ("template", 1152),
        ("other", 1184),
    ]
    assert not list(tmp_path.iterdir())  # what is timed is not what the user's cache holds


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = run("align", "--text", str(tmp_path / "none.txt"))
    assert missing.exit_code != 0
    assert "give a text file" in missing.stderr
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert "is empty" in run("align", "--text", str(empty)).stderr
    assert run("map", "--base", "nothing.gguf").exit_code != 0
