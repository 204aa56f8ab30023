"""Tables, pages and shifts of `cmc-local eval`, on the fake models of eval_runs.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_runs import NLL, Loader, Run, rows


def test_a_table_names_every_arm_and_metric(run: Run) -> None:
    shown = run("nll", *NLL).stdout
    assert all(text in shown for text in ("plain", "steered", "delta 1", "bits per character"))


def test_a_name_in_brackets_is_shown_as_it_is(run: Run) -> None:
    assert "[/b] m[q4]: nll on 2" in run("nll", *NLL, "--name", "[/b] m[q4]").stdout


def test_rows_that_do_not_fit_beside_each_other_stand_below(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = run("nll", *NLL, "--alphas", "0,1,2,3,4,5").stdout
    assert shown.count("nll on 2 questions") == shown.count("bits per character") == 2
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 60
    assert all(f"delta {alpha}" in shown for alpha in (1, 2, 3, 4, 5))


def test_the_page_is_made_of_results_and_logs(run: Run) -> None:
    pytest.importorskip("matplotlib")
    rows(run("nll", *NLL, "--output", "r.json", "--json", "--html", "one.html"))
    Path("log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"note": 1}\n{"step": 2, "loss": 1}\n')
    done = run("report", "r.json", "--html", "page.html", "--log", "run=log.jsonl")
    assert (done.output, done.exit_code) == ("", 0)
    assert "cmc-local eval nll" in Path("one.html").read_text("utf-8")
    assert "Training" in Path("page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "nothing to show"),
        (("none.json",), "none.json cannot be read"),
        (("held-out.jsonl",), "held-out.jsonl cannot be read"),
        (("--log", "log.jsonl"), "give a name and a file"),
        (("--log", "x=none.jsonl"), "none.jsonl cannot be read"),
        (("--log", "x=held-out.jsonl"), "held-out.jsonl has no line with a step"),
    ],
)
def test_a_report_of_nothing_is_one_line(run: Run, words: tuple[str, ...], reason: str) -> None:
    done = run("report", *words, "--html", "page.html")
    assert done.exit_code in (1, 2) and reason in done.stderr and done.stderr.count("\n") == 1
    assert not Path("page.html").exists()


def test_shifts_of_one_delta_on_two_models_of_one_vocabulary_are_the_same(run: Run) -> None:
    Path("other.gguf").touch()
    words = ("-m", "model.gguf", "-m", "other.gguf", "-a", "delta", "--data", "held-out.jsonl")
    done = run("shifts", *words, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["shifts"]["models"] == ["model", "other"]
    assert found["shifts"]["cosine"] == [[1.0, 1.0], [1.0, 1.0]]
    best = max(found["moved"], key=lambda one: one["mean_shift"])
    assert (best["token"], best["count"]) == ("b", 6)  # three places in each of two models
    assert "name one with --adapter" in run("shifts", *words[:4], *words[6:]).stderr


def test_pairs_are_compared_with_each_other_and_with_a_delta(run: Run, loader: Loader) -> None:
    # The tuned models double "b" (what the delta does), the odd one doubles "a".
    loader.weights = {
        "tuned.gguf": (0.1, 0.4, 0.6, 0.1, 0.1),
        "same.gguf": (0.1, 0.4, 0.6, 0.1, 0.1),
        "odd.gguf": (0.1, 0.8, 0.3, 0.1, 0.1),
    }
    for name in loader.weights:
        Path(name).touch()
    words = [f"--pair=model.gguf,{name}" for name in loader.weights]
    done = run("shifts", *words, "-a", "delta", "--data", "held-out.jsonl", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["shifts"]["models"] == ["model + delta", "tuned", "same", "odd"]
    # Over "a", "b", "ab" and a newline, less their mean: (-1, 3, -1, -1) and (3, -1, -1, -1).
    unlike = pytest.approx((-3 - 3 + 1 + 1) / 12, abs=1e-4)
    assert found["shifts"]["cosine"][0] == [1.0, 1.0, 1.0, unlike]
    assert found["shifts"]["cosine"][1] == [1.0, 1.0, 1.0, unlike]
    best = max(found["moved"], key=lambda one: one["mean_shift"])
    assert (best["token"], best["count"]) == ("b", 3)  # the delta's alone
    alone = json.loads(run("shifts", *words[:2], "--data", "held-out.jsonl", "--json").stdout)
    assert alone["shifts"]["models"] == ["tuned", "same"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--pair", "model.gguf"), "two GGUF files with a comma between them"),
        (("--pair", "model.gguf,"), "two GGUF files with a comma between them"),
        (("--pair", "model.gguf,none.gguf"), "no GGUF file at none.gguf"),
        ((), "give --gguf FILE, or --pair PLAIN,FINETUNED"),
    ],
)
def test_pairs_that_are_none_are_one_line(run: Run, words: tuple[str, ...], reason: str) -> None:
    done = run("shifts", *words, "--data", "held-out.jsonl")
    assert done.exit_code in (1, 2) and reason in done.stderr and done.stderr.count("\n") == 1
