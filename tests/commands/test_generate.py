"""`cmc-local generate`: a prompt, stdin, JSONL in and out; and `chat` without a terminal.

The model is a fake that answers "aa", or "bb" where the question ends in "b".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmc_local.commands import loading, main
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.model.steered import SteeredModel
from fakes import NEWLINE, B, FakeBase

Run = Callable[..., Result]


def echo(seen: tuple[int, ...]) -> tuple[float, ...]:
    """Two letters like the last one before the last newline, then the end."""
    at = max((i for i, token in enumerate(seen) if token == NEWLINE), default=0)
    if len(seen) - at > 2:
        return (1, 0, 0, 0, 0)
    return (0, 0, 1, 0, 0) if seen[at - 1] == B else (0, 1, 0, 0, 0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def fake(*_: object, **__: object) -> SteeredModel:
        base = FakeBase(echo, n_ctx=32)
        return SteeredModel(base, base.sampler)

    monkeypatch.setattr(loading, "steered", fake)
    (tmp_path / "model.gguf").touch()

    def invoke(command: str, *words: str, stdin: str | bytes | None = None) -> Result:
        words = (command, "--gguf", str(tmp_path / "model.gguf"), *words)
        return CliRunner().invoke(main, words, input=stdin)

    return invoke


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_prompt_is_answered_on_stdout_and_nothing_else(run: Run) -> None:
    done = run("generate", "ab")
    assert (done.stdout, done.stderr, done.exit_code) == ("aa\n", "", 0)


def test_stdin_is_the_prompt_where_there_is_none(run: Run) -> None:
    assert run("generate", stdin="b\n").stdout == "bb\n"


def test_json_gives_one_object(run: Run) -> None:
    (row,) = rows(run("generate", "b", "--json").stdout)
    assert row["seconds"] >= 0
    del row["seconds"]
    assert row == {"prompt": "b", "response": "bb", "finish_reason": "stop", "tokens": 2}


def test_jsonl_in_every_shape_keeps_its_fields(run: Run, tmp_path: Path) -> None:
    shapes = [
        {"id": 1, "prompt": "b"},
        {"question": "a", "answer": "known"},
        {"instruction": "a", "input": "b"},
        {"messages": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "x"}]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(map(json.dumps, shapes)) + "\n", "utf-8")
    done = run("generate", "--input", str(source), "--output", str(target))
    assert (done.stdout, done.exit_code) == ("", 0)
    found = rows(target.read_text("utf-8"))
    assert [row["response"] for row in found] == ["bb", "aa", "bb", "bb", "bb"]
    assert found[1]["answer"] == "known"


def test_jsonl_goes_from_stdin_to_stdout(run: Run) -> None:
    done = run("generate", "--input", "-", stdin='{"prompt": "b"}\n')
    assert rows(done.stdout)[0]["response"] == "bb"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": ', "Expecting value"),
        ('["b"]', "list found"),
        ('{"text": "b"}', "expected an object with"),
        ('{"prompt": 7}', '"prompt" must be a text'),
        ('{"messages": "b"}', '"messages" must be a list'),
        ('{"prompt": "b\\ud83d"}', "half a character"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_answered(
    run: Run, tmp_path: Path, line: str, reason: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "b"}\n' + line + "\n", "utf-8")
    done = run("generate", "--input", str(source))
    assert (done.stdout, done.exit_code) == ("", 1)
    assert f"{source}:2: " in done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "stdin", "code"),
    [
        ((), "", 2),
        (("",), None, 2),
        (("  ",), None, 2),
        (("a" * 60,), None, 2),
        (("b", "--input", "-"), '{"prompt": "b"}', 2),
        (("--input", "-"), "\n", 1),
        (("--input", "no-such-file"), None, 1),
        (("--input", "-"), b"\xff\xfe", 1),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    run: Run, words: tuple[str, ...], stdin: str | bytes | None, code: int
) -> None:
    done = run("generate", *words, stdin=stdin)
    assert (done.stdout, done.exit_code) == ("", code)
    assert done.stderr.count("\n") == 1


# --- chat, piped -----------------------------------------------------------------------------


def test_each_piped_line_is_answered_on_a_line(run: Run) -> None:
    done = run("chat", stdin="a\n\nb\n")
    assert (done.stdout, done.stderr, done.exit_code) == ("aa\nbb\n", "", 0)


def test_piped_commands_work_and_do_not_reach_stdout(run: Run) -> None:
    done = run("chat", stdin="/set max_tokens 1\na\n/set\n/bye\nb\n")
    assert done.stdout == "a\n"
    assert "max_tokens = 1" in done.stderr


def test_piped_quotes_hold_several_lines(run: Run) -> None:
    assert run("chat", stdin='"""a\nb"""\n').stdout == "bb\n"


@pytest.mark.parametrize(("stdin", "code"), [("", 2), ("\n", 2), ("/nothing\n", 2)])
def test_a_pipe_without_a_question_is_an_error(run: Run, stdin: str, code: int) -> None:
    done = run("chat", stdin=stdin)
    assert (done.stdout, done.exit_code) == ("", code)
    assert done.stderr.count("\n") == 1


def test_rows_answered_at_once_come_out_in_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[SteeredModel] = []

    def fake(chosen: ModelChoice) -> SteeredModel:
        base = FakeBase(lambda seen: (float(len(seen) % 7 == 0), 0.5, 0, 0, 0), n_ctx=32)
        loaded.append(SteeredModel(base, base.sampler, limits=chosen.limits))
        return loaded[-1]

    monkeypatch.setattr(loading, "steered", fake)
    (tmp_path / "model.gguf").touch()
    asked = "".join(json.dumps({"prompt": "a" * n}) + "\n" for n in (1, 5, 2, 4, 3))
    found = []
    for parallel in ("1", "3", "64"):
        words = ("generate", "-i", "-", "-p", parallel, "-m", str(tmp_path / "model.gguf"))
        done = CliRunner().invoke(main, words, input=asked)
        found.append([(row["prompt"], row["response"]) for row in rows(done.stdout)])
    assert [len(prompt) for prompt, _ in found[0]] == [1, 5, 2, 4, 3]
    assert found[0] == found[1] == found[2]
    assert [len(model._slots) for model in loaded] == [1, 3, 5]  # no more slots than rows


# --- a JSONL file that is there already ------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> tuple[str, str, Path]:
    """--input and its file, and where the answers go."""
    source = tmp_path / "in.jsonl"
    asked = [{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}, {"id": 3, "prompt": "ab"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    return "--input", str(source), tmp_path / "out.jsonl"


def without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path.read_text())]


def test_answers_are_not_written_over_unless_told(run: Run, three: tuple[str, str, Path]) -> None:
    *words, target = three
    target.write_text("precious\n", "utf-8")
    done = run("generate", *words, "--output", str(target))
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "--resume" in done.stderr and "--overwrite" in done.stderr
    assert target.read_text("utf-8") == "precious\n"
    assert run("generate", *words, "--output", str(target), "--overwrite").exit_code == 0
    assert [row["response"] for row in without_seconds(target)] == ["aa", "bb", "aa"]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", [0, 5])
def test_a_stopped_file_goes_on_behind_its_answers(
    run: Run, three: tuple[str, str, Path], kept: int, cut: int
) -> None:
    *words, target = three
    run("generate", *words, "--output", str(target))
    whole, lines = without_seconds(target), target.read_bytes().splitlines(keepends=True)
    rest = lines[kept][:cut] if kept < len(lines) else b""  # what a kill leaves of a line
    target.write_bytes(b"".join(lines[:kept]) + rest)
    done = run("generate", *words, "--output", str(target), "--resume")
    assert (done.output, done.exit_code) == ("", 0)
    assert without_seconds(target) == whole
    assert target.read_bytes().splitlines(keepends=True)[:kept] == lines[:kept]  # as they were


def test_resume_begins_where_there_is_no_file(run: Run, three: tuple[str, str, Path]) -> None:
    *words, target = three
    assert run("generate", *words, "--output", str(target), "--resume").exit_code == 0
    assert len(rows(target.read_text("utf-8"))) == 3


def test_a_finished_file_loads_no_model(
    run: Run, three: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    *words, target = three
    run("generate", *words, "--output", str(target))
    monkeypatch.setattr(loading, "steered", None)
    assert run("generate", *words, "--output", str(target), "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"id": 1, "prompt": "b"}\n', "is no answer"),
        ("no json\n", "is no answer"),
        ('{"id": 9, "prompt": "a", "response": "aa", "finish_reason": "stop", "tokens": 2, '
         '"seconds": 1}\n', "answers another row"),
        ("\n" * 4, "has 4 answers to 3 rows"),
        ("notes without a line end", "holds no answers"),
        ("no json\n{", "is no answer"),
    ],
)  # fmt: skip
def test_answers_to_other_rows_are_refused_and_kept(
    run: Run, three: tuple[str, str, Path], text: str, reason: str
) -> None:
    *words, target = three
    target.write_text(text, "utf-8")
    done = run("generate", *words, "--output", str(target), "--resume")
    assert done.exit_code == 1 and reason in done.stderr and done.stderr.count("\n") == 1
    assert target.read_text("utf-8") == text


def test_the_input_is_not_written_over(run: Run, three: tuple[str, str, Path]) -> None:
    option, source, _ = three
    before = Path(source).read_text("utf-8")
    done = run("generate", option, source, "--output", source, "--overwrite")
    assert done.exit_code == 2 and "is the --input too" in done.stderr
    assert Path(source).read_text("utf-8") == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(run: Run, three: tuple[str, str, Path]) -> None:
    option, source, _ = three
    done = run("generate", option, source, "--output", "/dev/full")
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "no room is left" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("b", "--resume"),
        ("b", "--alpaca", "x.json"),
        ("--input", "in.jsonl", "--resume"),
        ("--input", "in.jsonl", "--output", "-", "--overwrite"),
        ("--input", "in.jsonl", "--output", "x", "--resume", "--overwrite"),
    ],
)
def test_what_does_not_go_together_is_one_line(run: Run, words: tuple[str, ...]) -> None:
    done = run("generate", *words)
    assert (done.stdout, done.exit_code, done.stderr.count("\n")) == ("", 2, 1)


def test_alpacas_json_holds_kept_and_new_answers(
    run: Run, three: tuple[str, str, Path], tmp_path: Path
) -> None:
    *words, target = three
    run("generate", *words, "--output", str(target))
    lines = target.read_text("utf-8").splitlines(keepends=True)
    target.write_text(lines[0], "utf-8")
    file = tmp_path / "alpaca.json"
    done = run("generate", *words, "--output", str(target), "--resume", "--alpaca", str(file))
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text("utf-8")) == [
        {"instruction": asked, "output": said, "generator": "model"}
        for asked, said in (("a", "aa"), ("b", "bb"), ("ab", "aa"))
    ]


# --- a Ray cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("b", "--ray", "local"), "give one with --input"),
        (("--input", "in.jsonl", "--workers", "2"), "are for --ray"),
        (("--input", "in.jsonl", "--worker-gpus", "1"), "are for --ray"),
    ],
)
def test_rays_options_want_ray_and_rows(run: Run, words: tuple[str, ...], reason: str) -> None:
    done = run("generate", *words)
    assert (done.stdout, done.exit_code, done.stderr.count("\n")) == ("", 2, 1)
    assert reason in done.stderr


def test_rows_without_an_answer_are_kept_and_end_in_an_error(
    run: Run, three: tuple[str, str, Path]
) -> None:
    *words, target = three
    run("generate", *words, "--output", str(target))
    lines = target.read_text("utf-8").splitlines(keepends=True)
    gained = {"response": None, "finish_reason": "error", "tokens": 0, "seconds": 0, "error": "x y"}
    lines[1] = json.dumps({"id": 2, "prompt": "b", **gained}) + "\n"
    target.write_text("".join(lines[:2]), "utf-8")
    alpaca = target.with_name("alpaca.json")
    done = run("generate", *words, "-o", str(target), "--resume", "--alpaca", str(alpaca))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "1 of 3 rows have no answer, the first is row 2: x y" in done.stderr
    assert target.read_text("utf-8").splitlines(keepends=True)[:2] == lines[:2]
    assert [row["response"] for row in without_seconds(target)] == ["aa", None, "aa"]
    assert not alpaca.exists()  # it would hold an answer that is none
