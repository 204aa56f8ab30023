"""Prompt forms, and messages in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import UsageError
from cmc_local.text.prompts import (
    EndOfAnswer,
    Message,
    PromptForm,
    base_text,
    delta_segments,
    exchanges,
    named_form,
    named_forms,
)

EOS = EndOfAnswer.EOS


def talk(*texts: str, system: str | None = None) -> list[Message]:
    """A question, its answer, the next question, ..."""
    roles = ["user", "assistant"] * len(texts)
    turns = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
    return turns if system is None else [Message(role="system", content=system), *turns]


def test_the_papers_two_forms() -> None:
    assert base_text(named_form("cmc"), talk("Who?")) == "<|user|>\nWho?\n<|assistant|>\n"
    assert base_text(named_form("inst"), talk("Who?")) == "[INST] Who? [/INST] "


def test_several_turns_and_a_system_text() -> None:
    form = named_form("cmc")
    messages = talk("A?", "  B.", "C?", system="Be brief.")
    first = "Be brief.\n<|user|>\nA?\n<|assistant|>\nB."
    last = "<|user|>\nC?\n<|assistant|>\n"
    assert base_text(form, messages) == f"{first}\n{last}"
    assert delta_segments(form, messages) == [first, EOS, last]


def test_turns_last_keeps_the_system_text_and_the_last_question() -> None:
    form, messages = named_form("plain"), talk("A?", "B.", "C?", system="S")
    assert base_text(form, messages, turns="last") == "S\nC?\n"
    assert delta_segments(form, messages, turns="last") == ["S\nC?\n"]


def test_a_form_may_leave_system_texts_out() -> None:
    form = PromptForm("mine", "Q {query} A ", system="")
    assert base_text(form, talk("x", system="S")) == "Q x A "


@given(query=st.text(min_size=1).filter(lambda text: text.strip()))
def test_a_question_survives_whatever_it_holds(query: str) -> None:
    for form in named_forms().values():
        before, after = form.turn.split("{query}")
        assert base_text(form, talk(query)) == before + query + after


def test_braces_and_placeholders_in_texts_are_plain_text() -> None:
    messages = talk("{query} {0} {system}", "{query}", "{x", system="{system}{query}{")
    expected = "{system}{query}{\n{query} {0} {system}\n{query}\n{x\n"
    assert base_text(named_form("plain"), messages) == expected


def test_a_template_text_makes_a_form() -> None:
    assert named_form("Q: {query}\nA:").question("x") == "Q: x\nA:"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vicuna", "choose one of cmc, inst, alpaca, chatml, plain"),
        ("", "no prompt form ''"),
        ("{query} and {query}", "exactly once, not 2 times"),
    ],
)
def test_a_bad_form_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        named_form(text)


def test_a_bad_system_part_is_refused() -> None:
    with pytest.raises(UsageError, match="system"):
        PromptForm("mine", "{query}", system="no place")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no message with the role user"),
        (talk(system="S"), "no message with the role user"),
        (talk("A?", "B."), "the last message must have the role user"),
        (talk(" \n"), "the question is empty"),
        ([*talk("A?"), *talk("B?")], "message 2 must have the role assistant, not user"),
        ([*talk("A?", "B."), *talk("C?", system="S")], "message 3 must have the role user"),
        ([{"role": "robot", "content": "x"}], "message 1 has the role 'robot'"),
        ([{"role": "user", "content": None}], "message 1 has no text"),
        ([{"role": "user"}], "message 1 has no text"),
    ],
)
def test_messages_out_of_order_are_refused(messages: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        delta_segments(named_form("cmc"), messages)


def test_exchanges_end_with_the_open_question_or_with_an_answer() -> None:
    found = exchanges(named_form("plain"), talk("A?", " B.", "C?"))
    assert [(each.question, each.answer) for each in found] == [("A?\n", "B."), ("C?\n", None)]
    assert exchanges(named_form("plain"), talk("A?", "B."))[-1].answer == "B."
