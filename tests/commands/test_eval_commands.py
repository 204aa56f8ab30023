"""`cmc-local eval nll`, `rouge`, `tofu`, `world`, `alpaca`, `report`, `shifts` on fake models.

The base gives "a" 0.4 and "b" 0.3; the delta doubles "b" before normalising. Greedy: plain replies
are "a" over and over, steered ones "b".
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import pytest

from cmc_local import bundled
from cmc_local.commands import eval_options
from cmc_local.commands.eval import command as evaluation
from cmc_local.evaluate.report_gaps import HEADLINES, LOWER_IS_BETTER
from eval_runs import NLL, PLAIN_NLL, STEERED_NLL, Loader, Run, rows


def test_plain_and_steered_each_have_a_row(run: Run) -> None:
    plain, steered = rows(run("nll", *NLL, "--json"))
    assert plain["metrics"]["nll"] == pytest.approx(PLAIN_NLL)
    assert steered["metrics"]["nll"] == pytest.approx(STEERED_NLL)
    assert (plain["arm"], plain["adapter"], plain["alpha"]) == ("plain", None, 0.0)
    assert (steered["arm"], steered["adapter"], steered["alpha"]) == ("steered", "delta", 1.0)
    assert (plain["task"], plain["model"], plain["vocabulary"], plain["count"]) == (
        *("nll", "model", 5),
        2,
    )


def test_each_strength_has_a_row_and_its_command_makes_it_again(run: Run) -> None:
    found = rows(run("nll", *NLL, "--alphas=0,0.5", "--json", "--output", "r.json"))
    assert [row["alpha"] for row in found] == [0.0, 0.5]
    command = "cmc-local eval nll --gguf model.gguf --adapter delta --data held-out.jsonl"
    assert found[1]["command"] == f"{command} --alphas 0.5"
    words = shlex.split(found[1]["command"])[3:]
    assert rows(run("nll", *words, "--json")) == [found[1]]
    assert json.loads(Path("r.json").read_text())["rows"] == found


def test_a_finetuned_model_is_one_row_of_its_arm_and_name(run: Run) -> None:
    words = ("--gguf", "model.gguf", "--data", "held-out.jsonl", "--json")
    (row,) = rows(run("nll", *words, "--arm", "finetuned", "--name", "large"))
    assert (row["arm"], row["model"], row["alpha"]) == ("finetuned", "large", 0.0)
    (row,) = rows(run("nll", *NLL, "--json", "--arm", "capped"))  # one arm: the adapters' own
    assert (row["arm"], row["alpha"]) == ("capped", 1.0)


def test_a_base_with_a_lora_is_not_the_plain_one(run: Run) -> None:
    Path("lora.gguf").write_bytes(b"lora")
    plain, steered = rows(run("nll", *NLL, "--lora", "lora.gguf:0.5", "--json"))
    assert (plain["arm"], steered["arm"]) == ("lora", "lora+steered")
    assert "--lora lora.gguf:0.5" in plain["command"]


def test_a_stopped_measurement_goes_on_and_gives_what_one_piece_gives(
    run: Run, loader: Loader
) -> None:
    whole = rows(run("nll", *NLL, "--json"))
    steps = len(loader.bases[-1].decoded)
    loader.fails_at = steps - 1
    stopped = run("nll", *NLL, "--output", "r.json")
    assert stopped.exit_code == 130
    assert len(json.loads(Path("r.json").read_text())["rows"]) == 1  # the finished row is there
    loader.fails_at = None
    assert rows(run("nll", *NLL, "--output", "r.json", "--json")) == whole
    assert 0 < len(loader.bases[-1].decoded) < steps
    assert rows(run("nll", *NLL, "--output", "r.json", "--json")) == whole
    assert loader.bases[-1].decoded == []


@pytest.mark.parametrize("change", ["weights", "data", "adapter", "limit", "lora"])
def test_a_journal_of_other_settings_is_refused(run: Run, change: str) -> None:
    rows(run("nll", *NLL, "--output", "r.json", "--json"))
    match change:
        case "weights":
            Path("model.gguf").write_bytes(b"WEIGHTS")
        case "data":
            Path("held-out.jsonl").write_text('{"question": "a", "answer": "a"}\n')
        case "adapter":
            Path("delta/adapter.json").write_text("{ }")
        case "lora":
            Path("lora.gguf").write_bytes(b"lora")
    words = {"limit": ("--limit", "1"), "lora": ("--lora", "lora.gguf")}.get(change, ())
    done = run("nll", *NLL, "--output", "r.json", *words)
    assert (done.stdout, done.exit_code) == ("", 2)
    assert done.stderr.count("\n") == 1
    assert "is the journal of another measurement" in done.stderr


def test_a_measurement_that_could_not_begin_does_not_hold_its_place(
    run: Run, loader: Loader
) -> None:
    loader.fails_at = 0
    assert run("nll", *NLL, "--limit", "1", "--output", "r.json").exit_code == 130
    loader.fails_at = None
    assert len(rows(run("nll", *NLL, "--output", "r.json", "--json"))) == 2


def test_rows_of_other_data_or_sampling_have_another_key(run: Run) -> None:
    every, one = (rows(run("nll", *NLL, *more, "--json")) for more in ((), ("--limit", "1")))
    assert every[0]["data"] == every[1]["data"] != one[0]["data"] == one[1]["data"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--output", "delta"), "delta is a folder: give --output a file"),
        (("--adapter", "."), ". is not an adapter folder: give the folder that holds adapter.json"),
    ],
)
def test_a_folder_in_a_wrong_place_is_one_line(
    run: Run, words: tuple[str, ...], reason: str
) -> None:
    done = run("nll", *NLL, *words)
    assert done.exit_code in (1, 2) and done.stdout == ""
    assert done.stderr == f"cmc-local: error: {reason}\n"


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("rouge_score", ("rouge", *NLL)),
        ("rouge_score", ("tofu", "-m", "model.gguf", "--tofu", ".", "--forget", "01")),
        ("matplotlib", ("nll", *NLL, "--html", "page.html")),
    ],
)
def test_a_missing_package_is_told_before_anything_is_measured(
    run: Run,
    loader: Loader,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    done = run(*words)
    assert done.exit_code == 1 and 'pip install "cmc-local[eval]"' in done.stderr
    assert package in done.stderr and loader.bases == []


def test_results_without_a_journal_are_not_written_over(run: Run) -> None:
    Path("r.json").write_text("precious")
    done = run("nll", *NLL, "--output", "r.json")
    assert done.exit_code == 2 and "r.json exists" in done.stderr
    assert Path("r.json").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "x", "1,,2", "nan", "1;2"])
def test_alphas_that_are_no_numbers_are_one_line(run: Run, text: str) -> None:
    done = run("nll", *NLL, "--alphas", text)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "--alphas" in done.stderr


def test_strengths_without_an_adapter_are_one_line(run: Run) -> None:
    done = run("nll", "-m", "model.gguf", "--data", "held-out.jsonl", "--alphas", "0,1")
    assert done.exit_code == 2 and "name one with --adapter" in done.stderr


def test_words_of_the_run_are_left_out_of_a_rows_command() -> None:
    words = (
        "--json",
        "-o",
        "r.json",
        "--html=p.html",
        "--alphas",
        "0,1",
        "--name",
        "a b",
        "-p2",
        "-or.json",
    )
    assert eval_options._without(words) == ["--name", "a b", "-p2"]


def test_rouge_compares_replies_with_answers(run: Run) -> None:
    pytest.importorskip("rouge_score")
    plain, steered = rows(run("rouge", *NLL, "--json", "--max-tokens", "2"))
    assert plain["metrics"]["rouge_l_recall"] == 0.0  # "aa" for "b" and for "bb"
    assert steered["metrics"]["rouge_l_recall"] == 0.5  # "bb" for both
    assert plain["metrics"]["tokens"] == 2.0 and plain["metrics"]["cut_off"] == 1.0


def test_tofu_results_serve_as_the_retrained_model_of_another(run: Run, loader: Loader) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("scipy")
    item = '{"question": "b", "answer": "a", "perturbed_answer": ["b"]}\n'
    for name in ("forget01", "retain", "real_authors", "world_facts"):
        Path(f"{name}_perturbed.json").write_text(item * 2)
    words = ("--gguf", "model.gguf", "--tofu", ".", "--forget", "01", "--max-tokens", "1")
    (row,) = rows(run("tofu", *words, "--arm", "retrained", "--output", "re.json", "--json"))
    assert row["items"]["forget01"] == pytest.approx([math.sqrt(0.03 / 0.04)] * 2)
    assert row["count"] == 8 and "forget_quality" not in row["metrics"]
    (again,) = rows(run("tofu", *words, "--retrained", "re.json", "--json"))
    fewer = run("tofu", *words, "--retrained", "re.json", "--limit", "1")
    assert fewer.exit_code == 1 and "has 1 truth ratios, the retrained one 2" in fewer.stderr
    assert len(loader.bases) == 2  # told before a model is loaded
    assert again["metrics"]["forget_quality"] == 1.0  # the very same ratios
    assert 0 < again["metrics"]["model_utility"] < 1
    assert "--retrained re.json" in again["command"]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A world whose every reply is 40 tokens long: "a" and "b" over and over."""
    made = [
        {"author": f"A{n}", "kind": "home", "part": part, "forgotten": forgotten,
         "question": "ab", "answer": answer * 40, "fact": fact}
        for n, (part, forgotten, answer, fact) in enumerate(
            (("test", False, "b", "bb"), ("test", False, "a", "bbb"), ("validation", False, "b",
             "a"), ("test", True, "b", "bb"), ("train", True, "b", "z"))
        )
    ]  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    monkeypatch.setattr(bundled, "world", lambda _file: path)


WORLD = ("--gguf", "model.gguf", "--adapter", "delta", "--json")


@pytest.mark.usefixtures("questions")
def test_any_model_is_asked_of_the_world(run: Run) -> None:
    plain, steered = rows(run("world", *WORLD))
    assert plain["metrics"] == {"exact": 0.5, "fact": 0, "forgotten_fact": 0, "kept_fact": 0}
    assert steered["metrics"] == {"exact": 0.5, "fact": 1, "forgotten_fact": 0.5, "kept_fact": 1}
    assert (plain["arm"], steered["arm"], plain["count"]) == ("plain", "steered", 2)
    (row,) = rows(run("world", *WORLD, "--part", "validation", "--alphas", "0", "--arm", "lora"))
    assert (row["arm"], row["count"]) == ("lora", 1)
    assert row["metrics"] == {"exact": 0, "fact": 1, "forgotten_fact": 0, "kept_fact": 1}


@pytest.mark.usefixtures("questions")
@pytest.mark.parametrize(
    "words", [("--adapter", "delta"), ("--alphas", "0"), ("--name", "x"), ("--base-prompt", "raw")]
)
def test_what_is_said_of_one_model_needs_its_file(run: Run, words: tuple[str, ...]) -> None:
    done = run("world", *words)
    assert (done.stdout, done.exit_code) == ("", 2)
    assert f"{words[0]} is for one model" in done.stderr


@pytest.mark.usefixtures("questions")
def test_every_metric_has_a_direction_and_every_task_a_headline(run: Run) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("scipy")
    item = '{"question": "b", "answer": "a", "perturbed_answer": ["b"]}\n'
    for name in ("forget01", "retain", "real_authors", "world_facts"):
        Path(f"{name}_perturbed.json").write_text(item)
    Path("e.json").write_text('[{"instruction": "ab"}]')
    model = ("--gguf", "model.gguf", "--max-tokens", "1")
    tofu = (*model, "--tofu", ".", "--forget", "01")
    rows(run("tofu", *tofu, "--output", "re.json", "--json"))
    found = {
        "nll": run("nll", *NLL, "--json"),
        "rouge": run("rouge", *NLL, "--max-tokens", "1", "--json"),
        "tofu": run("tofu", *tofu, "--retrained", "re.json", "--json"),
        "alpaca": run("alpaca", *model, "--data", "e.json", "--output", "a.json", "--json"),
        "world": run("world", *WORLD),
    }
    assert found.keys() == evaluation.commands.keys() - {"report", "shifts"}
    for task, done in found.items():
        metrics = rows(done)[0]["metrics"].keys()
        assert metrics <= LOWER_IS_BETTER.keys()
        assert metrics & set(HEADLINES[task]), task


def test_alpaca_writes_a_file_for_each_strength(run: Run) -> None:
    Path("e.json").write_text('[{"instruction": "ab", "output": "x", "dataset": "d"}]')
    words = ("-m", "model.gguf", "-a", "delta", "--data", "e.json", "--max-tokens", "2")
    assert run("alpaca", *words, "--output", "out.json").exit_code == 0
    (plain,) = json.loads(Path("out-0.json").read_text())
    (steered,) = json.loads(Path("out-1.json").read_text())
    assert plain == {"instruction": "ab", "output": "aa", "generator": "model", "dataset": "d"}
    assert (steered["output"], steered["generator"]) == ("bb", "model+delta@1")
    assert run("alpaca", *words, "--alphas", "1", "--output", "one.json").exit_code == 0
    assert json.loads(Path("one.json").read_text()) == [steered]
    assert "give --output" in run("alpaca", *words).stderr
