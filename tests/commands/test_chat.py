"""The chat: questions, slash commands, piped lines, a real terminal.

The base model says "a" until it has said two of them, then ends; the adapter turns "a" into "b".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from cmc_local.commands.chat_session import HELP, ChatSession, Pane, read_question
from cmc_local.commands.chat_settings import changed
from cmc_local.commands.terminal_text import figures
from cmc_local.engine.timings import Timings
from cmc_local.errors import InputError, UsageError
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from fakes import NEWLINE, FakeBase, FakeShift, adapter, always, vocabulary


def two_letters(seen: tuple[int, ...]) -> tuple[float, ...]:
    """After the question's newline: "a", "a", end."""
    said = seen[::-1].index(NEWLINE) if NEWLINE in seen else len(seen)
    return (5, 0, 0, 0, 0) if said >= 2 else (0, 1, 0.5, 0, -9)


class Beside:
    """A column: what is drawn in it begins with its label."""

    def __init__(self, label: str, paper: Paper) -> None:
        self.label, self.paper = label, paper

    def think(self, text: str) -> None:
        self.paper.drawn.append(f"{self.label}~{text} ")

    def write(self, text: str) -> None:
        self.paper.drawn.append(f"{self.label}:{text} ")

    def end(self, timings: Timings) -> None:
        self.paper.drawn.append(f"{self.label}| ")


class Paper:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.stop_after: int | None = None
        self.beside = False

    def columns(self, labels: Sequence[str]) -> AbstractContextManager[Sequence[Pane] | None]:
        return nullcontext([Beside(label, self) for label in labels] if self.beside else None)

    def label(self, text: str) -> None:
        self.drawn.append(f"[{text}]")

    def think(self, text: str) -> None:
        self.drawn.append(f"~{text}~")

    def write(self, text: str) -> None:
        self.drawn.append(text)

    def end(self, timings: Timings) -> None:
        self.drawn.append("|")

    def note(self, text: str) -> None:
        self.drawn.append(f"({text})")

    def cancelled(self) -> bool:
        return self.stop_after is not None and self.drawn.count("a") >= self.stop_after

    def take(self) -> str:
        """What was drawn since the last look."""
        text = "".join(self.drawn)
        self.drawn.clear()
        return text


@pytest.fixture
def session() -> ChatSession:
    base = FakeBase(two_letters)
    model = SteeredModel(base, base.sampler)
    model.attach(adapter(FakeShift(always(0, 0, 1, 0, 0)), name="bee"), 1.0)
    return ChatSession(model, Paper(), Sampling(temperature=0), name="fake.gguf")


def drawn(session: ChatSession, *lines: str) -> str:
    screen = session.screen
    assert isinstance(screen, Paper)
    for line in lines:
        assert session.handle(line)
    return screen.take()


def test_an_answer_is_streamed_and_remembered(session: ChatSession) -> None:
    assert drawn(session, "a") == "bb|"
    assert session.history == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bb"},
    ]


def test_thoughts_are_shown_and_not_remembered() -> None:
    words = vocabulary(b"a", b"b", b"ab", b"\n", b"<think>", b"</think>")
    said = (5, 2, 6, 4, 1, 0)  # <think>b</think>, a line break, a

    def rule(tokens: tuple[int, ...]) -> list[float]:
        begun = tokens[tokens.index(5) :] if 5 in tokens else ()
        return [float(i == said[len(begun)]) for i in range(7)]

    base = FakeBase(rule, words=words, chat_template="{{ messages[0].content }}{# </think> #}")
    model = SteeredModel(base, base.sampler)
    session = ChatSession(model, Paper(), Sampling(temperature=0))
    assert drawn(session, "a") == "~b~a|"
    assert session.history[-1]["content"] == "a"


def test_alpha_acts_from_the_next_answer_on(session: ChatSession) -> None:
    assert drawn(session, "a", "/alpha 0", "a", "/alpha bee 1", "a") == (
        "bb|(bee  alpha 0  (off))aa|(bee  alpha 1)bb|"
    )


def test_an_adapter_goes_off_and_on_with_its_strength(session: ChatSession) -> None:
    assert drawn(session, "/alpha 0.7", "/adapter off bee", "a", "/adapter on") == (
        "(bee  alpha 0.7)(bee  alpha 0  (off))aa|(bee  alpha 0.7)"
    )


def test_compare_shows_plain_above_steered_and_keeps_the_steered(session: ChatSession) -> None:
    assert drawn(session, "/compare a") == "[plain]aa|[bee 1]bb|"
    assert session.history[-1]["content"] == "bb"


def test_compare_draws_each_answer_in_its_column(session: ChatSession) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    screen.beside = True
    assert drawn(session, "/compare a") == ("plain:a plain:a plain| bee 1:b bee 1:b bee 1| ")
    assert [message["content"] for message in session.history] == ["a", "bb"]


def test_compare_alone_is_a_switch(session: ChatSession) -> None:
    shown = drawn(session, "/compare", "a", "/compare", "a")
    assert shown == "(comparing every question)[plain]aa|[bee 1]bb|(comparing no more)bb|"


def test_regen_answers_the_last_question_again(session: ChatSession) -> None:
    assert drawn(session, "a", "/alpha 0", "/regen").endswith("aa|")
    assert [message["content"] for message in session.history] == ["a", "aa"]


def test_regen_before_any_question_says_so(session: ChatSession) -> None:
    with pytest.raises(UsageError, match="no question"):
        session.handle("/regen")


def test_clear_forgets(session: ChatSession) -> None:
    drawn(session, "a", "/clear")
    assert session.history == []


def test_set_changes_sampling_and_the_system_text(session: ChatSession) -> None:
    drawn(session, "/set max-tokens 1", "/set system ab")
    assert session.sampling.max_tokens == 1
    assert session.system == "ab"
    assert drawn(session, "a") == "b|"


def test_set_alone_shows_everything(session: ChatSession) -> None:
    shown = drawn(session, "/set")
    assert "temperature = 0" in shown
    assert "system = " in shown


def test_a_cancelled_answer_keeps_what_was_said(session: ChatSession) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    screen.stop_after = 1
    assert drawn(session, "/alpha 0", "a") == "(bee  alpha 0  (off))a|"
    assert session.history[-1] == {"role": "assistant", "content": "a"}


def test_a_comparison_stopped_in_the_plain_answer_goes_on_from_it(session: ChatSession) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    screen.stop_after = 1
    note = "(stopped: the conversation goes on from the plain answer)"
    assert drawn(session, "/compare a") == f"[plain]a|{note}"
    assert [message["content"] for message in session.history] == ["a", "a"]


def test_a_comparison_stopped_in_the_steered_answer_keeps_what_was_said(
    session: ChatSession,
) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    screen.stop_after = 3  # two of the plain answer, and the first of the other
    shown = drawn(session, "/alpha 0", "/compare a")
    assert shown == "(bee  alpha 0  (off))[plain]aa|[plain]a|"
    assert session.history[-1] == {"role": "assistant", "content": "a"}


def test_a_steered_answer_stopped_before_its_first_word_leaves_the_plain_one(
    session: ChatSession,
) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    screen.stop_after = 2
    drawn(session, "/compare a")
    assert [message["content"] for message in session.history] == ["a", "aa"]


def test_regen_stopped_before_the_first_word_leaves_the_answer(session: ChatSession) -> None:
    screen = session.screen
    assert isinstance(screen, Paper)
    drawn(session, "a")
    screen.stop_after = 0
    drawn(session, "/regen")
    assert [message["content"] for message in session.history] == ["a", "bb"]


def test_a_question_that_fails_is_forgotten(session: ChatSession) -> None:
    with pytest.raises(UsageError, match="shorten the prompt"):
        session.handle("a" * 100)
    assert session.history == []


def test_bye_leaves_and_help_helps(session: ChatSession) -> None:
    assert drawn(session, "/?") == f"({HELP})"
    assert not session.handle("/bye")


def test_the_help_names_every_command(session: ChatSession) -> None:
    named = {word for word in HELP.replace(";", " ").split() if word.startswith("/")}
    assert named | {"/?", "/help"} == {*session.completions("")}


def test_what_may_follow_a_command(session: ChatSession) -> None:
    assert session.completions("/alpha") == ["bee"]
    assert "max_tokens" in session.completions("/set")
    assert session.completions("/adapter off") == ["bee"]
    assert session.completions("a question") == []


def test_a_saved_chat_goes_on_where_it_was(session: ChatSession, tmp_path: Path) -> None:
    file = tmp_path / "talk one.json"
    drawn(session, "/set system ab", "/set base_prompt raw", "/set max_tokens 1", "/alpha 0.5", "a")
    history = list(session.history)
    assert drawn(session, f"/save {file}") == f"(saved 1 answered question in {file})"
    drawn(session, "/clear", "/set system", "/set base_prompt adapter", "/set max_tokens 9")
    drawn(session, "/adapter off", "a")
    assert drawn(session, f"/load {file}") == f"(loaded 1 answered question from {file})"
    assert session.history == history
    assert (session.system, session.base_prompt) == ("ab", "raw")
    assert session.sampling == Sampling(temperature=0, max_tokens=1)
    assert session.model.alphas == {"bee": 0.5}
    drawn(session, "/adapter on")
    assert session.model.alphas == {"bee": 0.5}


def test_a_chat_of_another_model_says_what_differs(session: ChatSession, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    drawn(session, "a", f"/save {file}")
    saved = json.loads(file.read_text())
    saved |= {"model": "else.gguf", "alphas": {"cee": 0.5}, "base_prompt": "gguf"}
    file.write_text(json.dumps(saved))
    assert drawn(session, f"/load {file}") == (
        f"(loaded 1 answered question from {file})"
        "(saved with the model else.gguf; now fake.gguf answers)"
        "(base_prompt stays as it is: this GGUF carries no chat template: ask it with "
        "--base-prompt adapter or raw)"
        "(cee: not loaded here: /adapter add PATH)(bee: not in the file: stays as it is)"
    )
    assert drawn(session, "/regen") == "bb|"


def test_a_bad_file_loses_nothing(session: ChatSession, tmp_path: Path) -> None:
    drawn(session, "a", "/alpha 0.7")
    history, file = list(session.history), tmp_path / "talk.json"
    drawn(session, f"/save {file}")
    broken = json.loads(file.read_text())
    broken["alphas"]["bee"] = "much"  # read after the messages, and before anything is taken
    broken["messages"] = []
    file.write_text(json.dumps(broken))
    with pytest.raises(InputError, match="alpha of 'bee'"):
        session.handle(f"/load {file}")
    assert session.history == history
    assert session.model.alphas == {"bee": 0.7}


@pytest.mark.parametrize("line", ["/save", "/load", "/load a\0b", "/save  "])
def test_a_file_must_be_named(session: ChatSession, line: str) -> None:
    with pytest.raises(UsageError, match="takes a file"):
        session.handle(line)


def test_an_unknown_command_names_the_help(session: ChatSession) -> None:
    with pytest.raises(UsageError, match=r"/\? lists them"):
        session.handle("/nothing")


@pytest.mark.parametrize(
    "line", ["/alpha much", "/alpha nan", "/alpha cee 1", "/adapter eat bee", "/set seed 1.5"]
)
def test_what_cannot_be_set_is_refused(session: ChatSession, line: str) -> None:
    with pytest.raises(UsageError):
        session.handle(line)


def test_changed_reads_each_kind_of_setting() -> None:
    sampling = changed(Sampling(), "seed", "7")
    assert sampling.seed == 7
    assert changed(sampling, "seed", "").seed is None
    assert changed(sampling, "temperature", "0.5").temperature == 0.5
    assert changed(changed(sampling, "stop", "a b"), "stop", "c").stop == ("a b", "c")
    assert changed(sampling, "json_schema", "{}").json_schema == "{}"
    assert changed(sampling, "regex", "[ab]+").regex == "[ab]+"
    plain = changed(sampling, "steer_thinking", "off")
    assert not plain.steer_thinking and changed(plain, "steer_thinking", "on").steer_thinking
    with pytest.raises(UsageError, match="on or off"):
        changed(sampling, "steer_thinking", "maybe")


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        (("one",), "one"),
        (('"""one', "two", '"""'), "one\ntwo"),
        (('"""', "one", 'two"""  '), "one\ntwo"),
        (('"""one"""',), "one"),
        (('"""one', "two"), "one\ntwo"),
    ],
)
def test_three_quotes_hold_several_lines(typed: tuple[str, ...], question: str) -> None:
    rest = iter(typed)

    def read() -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    assert read_question(read) == question


def test_the_figures_name_both_models_shares() -> None:
    timings = Timings(
        generated_tokens=8,
        prompt_seconds=1.0,
        decode_seconds=3.0,
        delta_seconds=0.5,
        total_seconds=5.0,
    )
    assert figures(timings) == ("8 tokens, 2.0 tokens/s; base 80% of the time, delta 10%")
