"""Prompt forms, messages in order, and the base's own chat template within its limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import GGUFError, UsageError
from cmc_local.text import prompts
from cmc_local.text.chat_template import render
from cmc_local.text.prompts import (
    EndOfAnswer,
    Message,
    PromptForm,
    base_text,
    chat_template_text,
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
        ("vicuna", "no prompt form 'vicuna': choose one of cmc, inst, alpaca, chatml, plain"),
        ("", "no prompt form ''"),
        ("{query} and {query}", "exactly once, not 2 times"),
    ],
)
def test_a_bad_form_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        named_form(text)


def test_a_bad_system_part_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must hold \{system\} exactly once or be empty"):
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


CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_up_to_where_the_answer_begins() -> None:
    text = chat_template_text(CHAT, talk(" Où? {x} ", "B.", "C?"), bos="<s>", eos="</s>")
    assert text == "<s><user>Où? {x}</s>\n<assistant>B.</s>\n<user>C?</s>\n<assistant>"


def rendered(template: str, **values: Any) -> dict[str, str]:
    return render(template, values, 1000)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if x %}\n  a\n{% endif %}\nb", "  a\nb"),  # blocks take their line along
        ("{{ d | tojson }}", '{"é": "<&>"}'),
        ("{{ d | tojson(indent=1) }}", '{\n "é": "<&>"\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{{ x }}{% endgeneration %}c", "ab1c"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ missing }}{% if tools is defined and tools %}t{% endif %}", ""),
    ],
)
def test_what_chat_templates_rely_on(template: str, text: str) -> None:
    assert rendered(template, x=1, d={"é": "<&>"}, tools=None) == {"text": text}


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ items.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ 'x' * 2000 }}",
        "{% for i in range(100) %}0123456789{% endfor %}!",
    ],
)
def test_a_template_that_breaks_out_or_breaks_down_is_an_error(template: str) -> None:
    assert rendered(template, items=[]).keys() == {"error"}


def test_a_template_may_refuse_the_messages() -> None:
    template = "{{ raise_exception('System role\nnot supported') }}"
    with pytest.raises(UsageError, match="refuses these messages: System role not supported"):
        chat_template_text(template, talk("A?"))


def test_a_broken_template_is_one_line_with_a_next_step() -> None:
    with pytest.raises(GGUFError, match="use --base-prompt adapter or raw") as caught:
        chat_template_text("{{ 1 / 0 }}", talk("A?"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("sys.platform == 'win32'", reason="takes 30 seconds there")
def test_a_template_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CPU_SECONDS", 1)
    numbers = "range(99999)"
    template = f"{{% for i in {numbers} %}}{{% for j in {numbers} %}}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(GGUFError, match="too long"):
        chat_template_text(template, talk("A?"))


@pytest.mark.skipif("sys.platform != 'linux'", reason="memory is limited on Linux alone")
def test_a_template_that_eats_memory_is_ended() -> None:
    doubling = "{% set ns = namespace(x='0123456789') %}{% for i in range(40) %}"
    template = doubling + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    with pytest.raises(GGUFError, match="memory"):
        chat_template_text(template, talk("A?"))


def test_a_question_on_more_than_one_line_reaches_the_template_whole() -> None:
    text = "a\r\nb\u2028c\0d 😀 \ud800"
    assert chat_template_text("{{ messages[0].content }}", talk(text)) == text
