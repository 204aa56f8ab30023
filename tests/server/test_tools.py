"""Tools: what is offered, the form of a reply, and calls read from it piece by piece."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cmc_local.base.model import BaseModel
from cmc_local.server.bodies import ChatBody
from cmc_local.server.errors import Refusal
from cmc_local.server.limits import RequestLimits
from cmc_local.server.tools import CallReader, Tools, offered, whole_calls
from cmc_local.settings import Sampling
from cmc_local.text.forms import form_of

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"name": "weather", "parameters": CITY}
NOW: dict[str, Any] = {"name": "now"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def tool(function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def offer(**fields: Any) -> Tools | None:
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [tool(WEATHER), tool(NOW)]}
    return offered(ChatBody.model_validate({**body, **fields}), RequestLimits())


def read(text: str, size: int = 1000) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls of a reply that comes in parts of some size."""
    reader = CallReader(["weather", "now"])
    deltas = [reader.read(text[at : at + size]) for at in range(0, len(text), size)]
    deltas.append(reader.read("", last=True))
    calls = [one["function"] for one in whole_calls(deltas)]
    said = "".join(one.get("content", "") for one in deltas)
    return said, [(one["name"], json.loads(one["arguments"])) for one in calls]


@pytest.mark.parametrize(
    ("fields", "names", "required", "parallel"),
    [
        ({}, ["weather", "now"], False, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ["weather", "now"], False, False),
        ({"tool_choice": "required"}, ["weather", "now"], True, True),
        ({"tool_choice": tool({"name": "now"})}, ["now"], True, True),
    ],
)
def test_what_is_offered(
    fields: dict[str, Any], names: list[str], required: bool, parallel: bool
) -> None:
    found = offer(**fields)
    assert found is not None
    assert (found.names, found.required, found.parallel) == (names, required, parallel)


def test_none_offers_nothing() -> None:
    assert offer(tool_choice="none") is None
    assert offer(tools=[]) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [tool(NOW), tool({})]}, "tools[1]"),
        ({"tools": [tool({"name": "f", "parameters": 7})]}, "tools[0]"),
        ({"tools": [tool({"name": "f" * 70_000})]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": tool({"name": "nothing"})}, "tool_choice"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        offer(**fields)
    assert (refused.value.param or "").startswith(param)


def test_a_template_with_tools_is_told_of_them_and_any_other_base_by_a_text() -> None:
    tools, asked = Tools([WEATHER], False, True), [{"role": "user", "content": "a"}]
    told, values = tools.told(asked, "{% if tools %}<tool_call>{% endif %}")
    assert (told, values) == (asked, {"tools": [tool(WEATHER)]})
    for template in (None, "{{ messages }}"):
        (system, *rest), values = tools.told(asked, template)
        assert (rest, values) == (asked, {})
        assert json.dumps(WEATHER) in system["content"] and "<tool_call>" in system["content"]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("reply", "said", "calls"),
    [
        ("It is cold.", "It is cold.", []),
        ("a < b <tool", "a < b <tool", []),
        (CALL, "", [("weather", {"city": "Oslo"})]),
        ("Let me see. " + CALL, "Let me see. ", [("weather", {"city": "Oslo"})]),
        (CALL + "\n" + OTHER, "", [("weather", {"city": "Oslo"}), ("now", {})]),
        ('{"name": "now", "arguments": {}}', "", [("now", {})]),
        ('```json\n{"name": "now", "arguments": {}}\n```', "", [("now", {})]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ('{"a": 1}', '{"a": 1}', []),
    ],
)
def test_a_reply_is_read_however_it_comes(
    reply: str, said: str, calls: list[Any], size: int
) -> None:
    assert read(reply, size) == (said, calls)


@given(some.text(alphabet='<tol_ca>{}"\n`json', max_size=30), some.integers(1, 5))
def test_what_holds_no_call_is_content_whatever_it_looks_like(text: str, size: int) -> None:
    assert read(text, size) == (text.partition("<tool_call>")[0], [])


def test_arguments_are_streamed_as_they_come_and_a_cut_call_is_told_so_far() -> None:
    reader = CallReader(["weather"])
    first = reader.read(CALL[:50])
    (named, begun) = first["tool_calls"]
    assert named["function"] == {"name": "weather", "arguments": ""}
    assert begun == {"index": 0, "function": {"arguments": '{"cit'}}
    rest = reader.read("", last=True)
    assert rest == {}
    assert reader.calls == 1


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_random_replies_of_the_form_are_calls_or_text(
    tiny_gguf: Path, required: bool, parallel: bool
) -> None:
    form = form_of(Sampling(lark=Tools([WEATHER, NOW], required, parallel).form()))
    assert form is not None
    seen = 0
    with BaseModel(tiny_gguf, context=64) as base:
        for seed in range(6):
            matcher, draw, said = base.forms.matcher(form), random.Random(seed), b""
            for _ in range(300):
                allowed = [int(one) for one in matcher.allowed()]
                wanted = CALL.encode()[len(said) :] if CALL.encode().startswith(said) else b""
                likely = [one for one in allowed if base.vocabulary.tokens[one] == wanted[:1]]
                token = draw.choice(likely or allowed)
                text = base.vocabulary.tokens[token]
                if not text:
                    break
                said += text
                matcher.take(token)
            else:
                continue
            calls = read(said.decode("utf-8", "replace"))[1]
            seen += len(calls)
            assert calls or not required
            assert len(calls) < 2 or parallel
            for name, arguments in calls:
                assert arguments in (
                    [{"city": "Oslo"}, {"city": "Rome"}] if name == "weather" else [{}]
                )
    assert seen


def test_a_real_model_calls_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmc_local import real_models
    from cmc_local.errors import InputError
    from cmc_local.model.steered import SteeredModel
    from cmc_local.server.tools import Tools as Offered

    try:
        path = real_models.find("qwen25")
    except InputError as error:
        pytest.skip(str(error))
    tools = Offered([WEATHER], True, False)
    with SteeredModel.load(path, threads=1) as model:
        asked = [{"role": "user", "content": "How is the weather in Rome?"}]
        messages, values = tools.told(asked, model.base.chat_template)
        assert values, "the GGUF's own template has tools"
        sampling = Sampling(temperature=0, max_tokens=60, lark=tools.form())
        reply = model.generate(messages, sampling)  # type: ignore[arg-type]
    assert read(reply.text) == ("", [("weather", {"city": "Rome"})])
