"""The run as commands: what is chosen, what is passed over, what may fail."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cmc_export.real import __main__ as program
from cmc_export.real import build
from cmc_export.real.build import Chosen
from cmc_export.real.measure import Sizes
from cmc_export.real.places import MODELS
from cmc_export.stages import Stage, run
from cmc_local.errors import TrainingError, UsageError

BASES = tuple(MODELS)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the real models' names, which nobody opens here."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in MODELS.values():
        (folder / name).touch()
    monkeypatch.setenv("CMC_REAL", str(folder))
    return folder


def commands(chosen: Chosen, task: str) -> list[list[str]]:
    return [shlex.split(stage.command) for stage in build.stages(chosen, task, BASES, print)]


def test_a_stage_whose_result_is_there_is_not_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "there", "no-such-command")
    with pytest.raises(TrainingError, match="no-such-command"):
        run(stage, print)
    stage.result.touch()
    said: list[str] = []
    run(stage, said.append)
    assert not said


def test_a_second_run_does_what_the_first_left_undone(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def fake(stage: Stage, say: object) -> None:
        if stage.result.exists():
            return
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(stage.command)
        stage.result.parent.mkdir(parents=True, exist_ok=True)
        stage.result.write_text('{"format": 1, "rows": []}')

    monkeypatch.setattr(build, "run", fake)
    chosen = Chosen(tasks=("style",), arms=("plain",), runs=tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        build.make_all(chosen, print)
    assert [one.split("--bases ")[1].split()[0] for one in done] == ["smollm2", "gemma3"]
    done[:] = ["first"]
    build.make_all(chosen, print)
    assert [one.split("--bases ")[1].split()[0] for one in done[1:]] == ["qwen25"]


def test_each_template_answers_once_for_all_seeds_and_deltas(models: Path, tmp_path: Path) -> None:
    chosen = Chosen(arms=("delta",), seeds=(0, 1), runs=tmp_path, pretrained=tmp_path)
    made = commands(chosen, "short")
    tables = [words[words.index("-o") + 1] for words in made if words[0] == "record"]
    assert set(tables) == {
        str(tmp_path / f"short/answers.{name}") for name in ("gemma3", "smollm2")
    }
    trained = [words for words in made if words[0] == "train"]
    assert len(trained) == 3 * 2
    assert sorted({words.count("--answers") for words in trained}) == [1, 2]
    assert len([words for words in made if words[0] == "measure"]) == 3 * 2 * 3


def test_recording_names_the_rows_that_training_asks_for(models: Path, tmp_path: Path) -> None:
    chosen = Chosen(arms=("delta",), runs=tmp_path, pretrained=tmp_path, templates=("gemma3",))
    for task, held in (("style", "--valid"), ("forget", "--retain")):
        record, train = commands(chosen, task)[:2]
        assert (record[0], train[0]) == ("record", "train")
        for option in ("--data", held, "--prompt", "--turns", "--init"):
            place = record.index(option)
            assert record[place : place + 2] == train[train.index(option) :][:2], option


def test_a_delta_with_the_tasks_words_has_an_initial_model_and_a_table_of_its_own(
    models: Path, tmp_path: Path
) -> None:
    chosen = Chosen(arms=("delta",), runs=tmp_path, pretrained=tmp_path, templates=("words",))
    stages = list(build.stages(chosen, "style", BASES, print))
    assert stages[0].line.startswith(f"python -m cmc_export.real.words {tmp_path} --data ")
    for stage in stages[1:3]:
        words = shlex.split(stage.command)
        assert words[words.index("--init") + 1] == str(stages[0].result)
    assert stages[1].result.parent.name == "answers.gemma3.words"


def test_rivals_are_trained_where_they_are_asked_for(models: Path, tmp_path: Path) -> None:
    chosen = Chosen(runs=tmp_path, pretrained=tmp_path)
    assert any(words[0] == "finetune" for words in commands(chosen, "style"))
    assert not any(words[0] == "finetune" for words in commands(chosen, "label"))
    chosen = Chosen(runs=tmp_path, pretrained=tmp_path, arms=("proxy",))
    made = commands(chosen, "label")
    assert [words[0] for words in made] == ["finetune", "measure", "measure", "measure"]
    assert "smollm2" in made[0][made[0].index("-o") + 1]  # the pair is SmolLM2's


def test_a_lora_that_cannot_be_made_is_passed_over(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(stage: Stage, say: object) -> None:
        raise TrainingError(f"`{stage.command.split()[0]}` ended with 2: see above")

    monkeypatch.setattr(build, "run", fails)
    said: list[str] = []
    chosen = Chosen(tasks=("style",), arms=("lora",), runs=tmp_path)
    build.make_all(chosen, said.append)
    assert [one for one in said if one.startswith("passed over: `finetune`")]
    with pytest.raises(TrainingError):
        build.make_all(Chosen(tasks=("style",), arms=("plain",), runs=tmp_path), said.append)


def test_a_base_that_is_not_there_is_left_out(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / MODELS["gemma3"]).unlink()
    done: list[str] = []
    monkeypatch.setattr(build, "run", lambda stage, say: done.append(stage.command))
    said: list[str] = []
    build.make_all(Chosen(tasks=("style",), arms=("plain",), runs=tmp_path), said.append)
    assert len(done) == 2 and not [one for one in done if "gemma3" in one]
    assert "left out" in said[0] and "CMC_REAL" in said[0]


def test_a_measurement_names_what_makes_it_again(models: Path, tmp_path: Path) -> None:
    chosen = Chosen(arms=("plain",), bases=("gemma3",), runs=tmp_path, sizes=Sizes(test=5))
    (words,) = (
        one for one in commands(chosen, "short") if one[one.index("--bases") + 1] == "gemma3"
    )
    given = program._parser().parse_args(words)
    assert (given.tasks, given.bases, given.arms, given.test) == ("short", "gemma3", "plain", 5)
    assert given.runs == tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["--tasks", "shrot"],
        ["--bases", "llama"],
        ["--arms", "delta-qwen25"],
        ["--arms", "steered"],
        ["--seeds", "one"],
        ["--test", "0"],
    ],
)
def test_wrong_choices_end_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["table", *words]) == UsageError.exit_code
    told = capsys.readouterr().err
    assert told.startswith("error: --") and told.count("\n") == 1


def test_a_delta_is_one_cell_a_template_and_seed() -> None:
    chosen = Chosen(tasks=("short",), bases=("qwen25",), seeds=(0, 1))
    found = program.cells(chosen, ["plain", "delta"])
    assert [(one.arm, one.seed) for one in found] == [
        ("plain", 0),
        *((f"delta-{name}", seed) for name in ("gemma3", "smollm2", "both") for seed in (0, 1)),
    ]
