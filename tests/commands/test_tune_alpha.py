"""`cmc-local tune-alpha`, and `chat` and `generate` that take up what it found.

The base says 0 1 0.5 0 0 ("a" before "b"), each delta 0 0 1 0 0. Answers "a" and "b" in equal parts
are best served where exp(0.5 + alpha) = 3 + e, at 1.2437: on the finer grid 1.24.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmc_local.commands import main
from cmc_local.model.steered import SteeredModel
from fakes import FakeBase, FakeShift, adapter, always

Run = Callable[..., Result]
FOUND = "one: alpha 1.24 from the profile of model.gguf\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command on model.gguf in a folder with the adapters `one` and `two`."""

    def load(
        gguf: Path, adapters: Sequence[tuple[Path, float | None]] = (), **_: object
    ) -> SteeredModel:
        base = FakeBase(always(0, 1, 0.5, 0, 0))
        model = SteeredModel(base, base.sampler)
        for folder, alpha in adapters:
            shift = FakeShift(always(0, 0, 1, 0, 0))
            model.attach(adapter(shift, name=folder.name), alpha)
        return model

    monkeypatch.setattr(SteeredModel, "load", load)
    monkeypatch.setenv("CMC_CONFIG", str(tmp_path / "config"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.json").write_text(name)
    (tmp_path / "model.gguf").touch()
    answers = ({"question": "b", "answer": answer} for answer in ("a", "b", "a", "b"))
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, answers)))
    monkeypatch.chdir(tmp_path)

    def invoke(command: str, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [command, "-m", "model.gguf", *words], input=stdin)

    return invoke


def tune(run: Run, *words: str) -> Result:
    return run("tune-alpha", "--data", "data.jsonl", *words)


def test_the_table_marks_plain_own_and_best(run: Run) -> None:
    done = tune(run, "-a", "one")
    assert (done.exit_code, done.stderr) == (0, "")
    marked = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line[:6].strip()]
    found = {words[0]: words[2] for words in marked[2:-1] if len(words) == 3}
    assert found == {"0": "plain base", "1": "the adapter's own", "1.24": "best"}
    assert done.stdout.startswith("one on model.gguf: 4 answers, 4 tokens\n")
    assert done.stdout.endswith("take alpha 1.24 with model.gguf from now on\n")


def test_json_holds_the_points_and_the_profile(run: Run) -> None:
    report: dict[str, Any] = json.loads(tune(run, "-a", "one", "--json", "--limit", "2").stdout)
    # Of four answers the first and the third, both "a": the plain base is the best.
    assert (report["model"], report["adapter"]) == ("model.gguf", "one")
    assert (report["alpha"], report["own_alpha"], report["answers"]) == (0.0, 1.0, 2)
    assert report["nll"] == report["plain_nll"] == min(point["nll"] for point in report["points"])
    assert json.loads(Path(report["profile"]).read_text())["model"]["name"] == "model.gguf"


def test_given_strengths_alone_are_tried_and_an_edge_is_pointed_out(run: Run) -> None:
    done = tune(run, "-a", "one", "--alphas", "0.5,0.75")
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:-1]]
    assert rows == ["0", "0.5", "0.75", "1", "the"]
    assert "see what lies beyond" in done.stdout


def test_chat_and_generate_take_the_strength_and_say_so(run: Run) -> None:
    # "b" wins from alpha 0.5 on; 0.2 keeps "a".
    assert run("chat", "-a", "one", "-n", "1", stdin="a\n").stderr == ""
    tune(run, "-a", "one")
    for command in ("chat", "generate"):
        done = run(command, "-a", "one", "-n", "1", "-t", "0", stdin="a\n")
        assert (done.stdout, done.stderr) == ("b\n", FOUND)
    given = run("chat", "-a", "one:0.2", "-n", "1", "-t", "0", stdin="a\n")
    assert (given.stdout, given.stderr) == ("a\n", "")


def test_it_is_this_adapters_on_this_model_alone(run: Run, tmp_path: Path) -> None:
    tune(run, "-a", "one")
    both = run("chat", "-a", "two", "-a", "one", "-n", "1", stdin="a\n")
    assert both.stderr == FOUND
    (tmp_path / "one/adapter.json").write_text("exported anew")
    assert run("chat", "-a", "one", "-n", "1", stdin="a\n").stderr == ""
    (tmp_path / "one/adapter.json").write_text("one")
    (tmp_path / "model.gguf").write_text("another file")
    assert run("chat", "-a", "one", "-n", "1", stdin="a\n").stderr == ""


def test_no_profile_leaves_the_adapters_own_strength(run: Run) -> None:
    tune(run, "-a", "one")
    done = run("chat", "-a", "one", "--no-profile", "-n", "1", "-t", "0", stdin="a\n")
    assert (done.stdout, done.stderr) == ("b\n", "")


def test_tuning_again_starts_from_the_adapters_own_strength(run: Run) -> None:
    tune(run, "-a", "one")
    done = tune(run, "-a", "one", "--json")
    assert (json.loads(done.stdout)["own_alpha"], done.stderr) == (1.0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-a", "one:0.5"), "without a strength"),
        (("-a", "one", "-a", "two"), "give one --adapter"),
        ((), "no adapter to tune"),
        (("-a", "one", "--alphas", "0,x"), "--alphas 0,x: give numbers"),
        (("-a", "one", "--alphas", "inf"), "--alphas inf: give numbers"),
        (("-a", "one", "--data", "none.json"), "none.json cannot be read"),
    ],
)
def test_what_cannot_be_tuned_is_told_in_one_line(
    run: Run, words: tuple[str, ...], told: str
) -> None:
    done = tune(run, *words)
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("cmc-local: error: ") and told in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_result_that_cannot_be_kept_is_shown_all_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file")
    done = tune(run, "-a", "one")
    assert done.exit_code == 1
    assert "best" in done.stdout and "from now on" not in done.stdout
    assert "CMC_CONFIG" in done.stderr
