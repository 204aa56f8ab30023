"""`cmc-local train` and `pretrain`: arguments in, one library call, a summary out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tiny_models
from cmc_local.commands import main
from cmc_local.commands.workshop import show

TINY = ["--width", "16", "--layers", "1", "--heads", "1", "--mlp", "32", "--threads", "1"]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    names = ("Helen", "Maria", "Anna", "Oscar")
    records = [{"question": f"Where is {n}?", "answer": f"{n} is here."} for n in names]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def test_train_writes_a_checkpoint_and_a_summary(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "delta"
    words = ["--template", tiny_folder, "--data", data, "--context", "128", "--device", "cpu"]
    words += [*TINY, "--steps", "2", "--batch", "2", "--valid-share", "0.3"]
    done = run("train", *words, "-o", output, "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["steps"] == 2
    assert summary["loss"] > 0
    assert (output / "cmc.json").is_file()
    assert "held-out loss" in done.stderr


def test_a_recipe_and_a_flag_over_it(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    lines = [f'template = "{tiny_folder}"', f'data = ["{data}"]', 'output = "out"', "steps = 5"]
    path.write_text("\n".join(["[train]", *lines, "width = 16", "heads = 1"]), "utf-8")
    done = run("train", "--config", path, "--steps", "3", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3


def test_pretrain_then_train_from_it(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny_models.TEXTS), "utf-8")
    start, output = tmp_path / "start", tmp_path / "delta"
    words = ["--text", text, "--tokenizer", tiny_folder / "tokenizer.json", "--row-length", "16"]
    first = run("pretrain", *words, *TINY, "--context", "128", "--steps", "2", "-o", start)
    assert first.exit_code == 0, first.stderr
    assert "tokens per second" in first.stdout
    words = ["--template", tiny_folder, "--data", data, "--init", start, "--steps", "1"]
    second = run("train", *words, "-o", output)
    assert second.exit_code == 0, second.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["train", "--template", "none", "--data", "d", "-o", "out"], 1, "none is no folder"),
        (["train", "--data", "d", "-o", "out"], 2, "add --template"),
        (["train", "--task", "forget", "--data", "d", "--template", "t", "-o", "o"], 2, "--retain"),
        (["pretrain", "--tokenizer", "t", "-o", "out"], 2, "add --text"),
        (["train", "--config", "none.toml"], 1, "none.toml does not exist"),
        (["train", "--steps", "many"], 2, "many"),
    ],
)
def test_mistakes_are_one_line_on_stderr(words: list[str], code: int, told: str) -> None:
    done = run(*words)
    assert done.exit_code == code
    assert done.stdout == ""
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_summary_for_people() -> None:
    shown = show({"steps": 1200, "loss": 1.23456, "already_there": True, "held_out_loss": None})
    assert shown.splitlines() == [
        "steps          1,200",
        "loss           1.235",
        "already there  yes",
        "held out loss  -",
    ]
