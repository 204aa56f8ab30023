"""A base model's own chat template: what it may do, and the limits that end it."""

from __future__ import annotations

from typing import Any

import pytest

from cmc_local.errors import GGUFError, UsageError
from cmc_local.text import chat_template
from cmc_local.text.chat_template import chat_template_text
from cmc_local.text.prompts import Message
from cmc_local.text.template_runner import render

QUESTION: list[Message] = [{"role": "user", "content": "A?"}]
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_up_to_where_the_answer_begins() -> None:
    talk: list[Message] = [
        {"role": "user", "content": " Où? {x} "},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    text = chat_template_text(CHAT, talk, bos="<s>", eos="</s>")
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
    with pytest.raises(UsageError, match="System role not supported"):
        chat_template_text(template, QUESTION)


def test_a_broken_template_is_one_line_with_a_next_step() -> None:
    with pytest.raises(GGUFError, match="--base-prompt adapter") as caught:
        chat_template_text("{{ 1 / 0 }}", QUESTION)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("sys.platform == 'win32'", reason="takes 30 seconds there")
def test_a_template_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    numbers = "range(99999)"
    template = f"{{% for i in {numbers} %}}{{% for j in {numbers} %}}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(GGUFError, match="too long"):
        chat_template_text(template, QUESTION)


@pytest.mark.skipif("sys.platform != 'linux'", reason="memory is limited on Linux alone")
def test_a_template_that_eats_memory_is_ended() -> None:
    doubling = "{% set ns = namespace(x='0123456789') %}{% for i in range(40) %}"
    template = doubling + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    with pytest.raises(GGUFError, match="memory"):
        chat_template_text(template, QUESTION)


def test_a_question_on_more_than_one_line_reaches_the_template_whole() -> None:
    text = "a\r\nb\u2028c\0d 😀 \ud800"
    assert (
        chat_template_text("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text
    )
