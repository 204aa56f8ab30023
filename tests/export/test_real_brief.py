"""The shipped adapter's data and commands: what it may learn from, and what is held out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_export.real import brief, brief_choice
from cmc_export.real.places import MODELS
from cmc_export.recipe import PretrainRecipe, TrainRecipe, build_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    (folder / "instruct").mkdir(parents=True)
    rasbt = [{"instruction": f"Spell {i}.", "input": "", "output": str(i)} for i in range(300)]
    dolly = [
        {"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."} for i in range(80)
    ]
    dolly += [
        {"instruction": "Read this.", "input": "A long text.", "output": "Read."},
        {"instruction": "Tell all.", "input": "", "output": "word " * 60},
        {"instruction": "Why? " * 40, "input": "", "output": "So."},
    ]
    for name, rows in (("rasbt_instruction_data_1100.json", rasbt), ("dolly_3k.json", dolly)):
        (folder / "instruct" / name).write_text(json.dumps(rows), "utf-8")
    monkeypatch.setenv("CMC_DATA", str(folder))
    return folder


def questions(path: Path) -> set[str]:
    return {json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()}


def test_only_short_answers_without_a_text_are_taken(data_folder: Path) -> None:
    rows = list(brief.dolly_rows())
    assert {row["question"] for row in rows} == {f"What is {i}?" for i in range(80)}


def test_no_test_question_is_learned(data_folder: Path, tmp_path: Path) -> None:
    place = brief.write_data(tmp_path / "runs")
    train, valid = (questions(place / f"{part}.jsonl") for part in ("train", "valid"))
    test = {row["question"] for row in brief.data.short()["test"]}
    assert train and valid and test
    assert not train & valid and not (train | valid) & test


def test_the_recipe_is_read_with_the_stages_own_options(tmp_path: Path) -> None:
    config, shown = ROOT / brief.RECIPE, {"output": tmp_path / "out"}
    pretrain = build_recipe(
        PretrainRecipe, "pretrain", config, {**shown, "text": (tmp_path / "t",)}
    )
    train = build_recipe(
        TrainRecipe, "train", config, {**shown, "answers": (tmp_path,), "data": (tmp_path,)}
    )
    assert (pretrain.vocabulary, train.prompt, train.patience) == (4096, "cmc", 0)


def test_adapters_are_compared_on_questions_that_training_did_not_see(
    bundled_models: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MODELS["smollm2"]).symlink_to(bundled_models / "template.gguf")
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    given = [str(bundled_models / "instruct"), "--bases", "smollm2", "--alphas", "0.5,1"]
    given += ["--count", "2", "--max-tokens", "4", "--threads", "1", "--runs", str(tmp_path)]
    assert brief_choice.main(given) == 0
    found = json.loads((tmp_path / "brief/choice.smollm2.instruct.valid.json").read_text())
    assert [row["alpha"] for row in found["rows"]] == [0.5, 1.0]
    assert all(len(row["items"]) == len(row["replies"]) == 2 for row in found["rows"])
