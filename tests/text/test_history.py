"""Conversations as programs send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cmc_local.errors import UsageError
from cmc_local.text.base_prompt import BasePromptForm
from cmc_local.text.history import fold, read_history, without_system
from cmc_local.text.prompts import exchanges, named_form

FORM = named_form("plain")
CALL = {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def folded(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in read_history(messages).folded]


def test_an_ordinary_conversation_stays_as_it_is() -> None:
    talk = (system("Be kind."), user("Hi."), assistant("Hello."), user("Who?"))
    history = read_history(talk)
    assert list(history.turns) == list(talk) == history.folded
    assert history.begun == ""


def test_neighbours_become_one_text() -> None:
    assert folded(user("Hi."), user("Who?")) == [("user", "Hi.\n\nWho?")]
    found = folded(user("a"), assistant("b"), assistant("c"), user("d"))
    assert found == [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")]


def test_system_texts_come_first_and_a_later_one_is_part_of_a_question() -> None:
    found = folded(system("A"), {"role": "developer", "content": "B"}, user("q"))
    assert found == [("system", "A\n\nB"), ("user", "q")]
    found = folded(user("q"), assistant("a"), system("Now in French."), user("r"))
    assert found[-1] == ("user", "Now in French.\n\nr")


def test_a_last_answer_is_what_the_answer_begins_with() -> None:
    history = read_history((user("Count."), assistant("one, "), assistant("two, ")))
    assert history.begun == "one, \n\ntwo, "
    assert history.folded == [user("Count.")]


def test_tools_are_read_for_templates_and_spoken_for_forms() -> None:
    talk = (
        user("Is it cold?"),
        assistant(None, tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "-3"},
    )
    history = read_history(talk)
    assert history.turns[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Oslo"}},
            }
        ],
    }
    assert history.turns[2] == talk[2]
    assert [one["content"] for one in history.folded] == [
        "Is it cold?",
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
        "Result of weather: -3",
    ]


def test_parts_are_joined_and_nothing_is_an_empty_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert read_history((assistant(None), user(parts))).turns[1] == user("ab")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ((), "user"),
        ((system("A"),), "user"),
        ((assistant("a"),), "user"),
        ((user(" "),), "empty"),
        (({"role": "robot", "content": "a"},), "robot"),
        (({"content": "a"},), "role"),
        ((user(7),), "message 1"),
        ((user("a"), user([{"type": "image_url"}])), "message 2.*image_url"),
        ((user("a"), assistant("", tool_calls=[CALL])), "result"),
        ((user("a"), assistant("", tool_calls=[{}]), user("b")), "message 2"),
        (
            (
                user("a"),
                assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
                user("b"),
            ),
            "f",
        ),
    ],
)
def test_what_cannot_be_read_is_named(messages: tuple[Any, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read_history(messages)


@given(
    some.lists(
        some.builds(
            lambda role, text: {"role": role, "content": text},
            some.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            some.text(max_size=3),
        ),
        max_size=8,
    )
)
def test_whatever_is_read_is_a_conversation_for_every_form(messages: list[Any]) -> None:
    try:
        history = read_history(messages)
    except UsageError:
        return
    found = exchanges(FORM, history.folded)  # refuses what does not take turns
    assert found[-1].answer is None
    whole = "".join(one["content"] for one in history.folded) + history.begun
    assert all(one["content"] in whole for one in messages)


# --- the base's own template ---------------------------------------------------------------------

LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
STRICT = (
    "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + LOOP
)


class Base:
    """A base model with nothing but a template."""

    def __init__(self, template: str) -> None:
        from fakes import vocabulary

        self.vocabulary, self.chat_template = vocabulary(b"a"), template


def prompt(template: str, *messages: dict[str, Any], **values: Any) -> str:
    form = BasePromptForm("gguf", FORM, values=values)
    return form.text(Base(template), read_history(messages)).text  # type: ignore[arg-type]


def test_a_template_that_takes_the_turns_gets_them_as_they_are() -> None:
    said = prompt(LOOP, user("a"), user("b"), system("c"), user("d"))
    assert said == "<user>a<user>b<system>c<user>d<answer>"


def test_a_template_that_refuses_them_gets_them_folded() -> None:
    assert prompt(STRICT, user("a"), user("b")) == "<user>a\n\nb<answer>"
    said = prompt(STRICT, system("S"), user("a"), assistant("b"), user("c"))
    assert said == "<user>S\n\na<assistant>b<user>c<answer>"


def test_a_begun_answer_follows_the_prompt() -> None:
    assert prompt(LOOP, user("a"), assistant("It is ")) == "<user>a<answer>It is "
    for kind, expected in (("adapter", "a\nIt"), ("raw", "aIt")):
        form = BasePromptForm(kind, FORM)  # type: ignore[arg-type]
        history = read_history((user("a"), assistant("It")))
        assert form.text(Base(LOOP), history).text == expected  # type: ignore[arg-type]


def test_a_template_is_told_further_values() -> None:
    template = "{{ messages[0].content }}{% if enable_thinking is false %}!{% endif %}"
    assert prompt(template, user("a"), enable_thinking=False) == "a!"
    assert prompt(template, user("a")) == "a"


def test_a_template_that_refuses_everything_says_why() -> None:
    with pytest.raises(UsageError, match="never"):
        prompt("{{ raise_exception('never') }}", user("a"), user("b"))


def test_folding_does_not_change_what_it_is_given() -> None:
    turns: Iterator[Any] = iter([user("a"), user("b")])
    kept = list(turns)
    fold(kept)
    assert kept == [user("a"), user("b")]
    assert without_system([user("a")]) == [user("a")]  # type: ignore[list-item]
