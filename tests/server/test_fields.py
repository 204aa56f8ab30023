"""Every field of every request: honoured, without effect, refused, or named as unknown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmc_local.server import fields
from cmc_local.server.bodies import Asking, ChatBody, CompletionBody, parse
from cmc_local.server.errors import Refusal
from cmc_local.server.messages import MessagesBody
from cmc_local.server.responses import ResponsesBody
from server.conftest import Served
from server.small import Small

TURN = [{"role": "user", "content": "ab"}]
SCHEMA = {"type": "integer"}
TOOL = {"type": "function", "function": {"name": "now"}}
ROUTES: dict[str, tuple[type[Asking], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, {"messages": TURN}),
    "/v1/completions": (CompletionBody, {"prompt": "ab"}),
    "/v1/responses": (ResponsesBody, {"input": "ab"}),
    "/v1/messages": (MessagesBody, {"messages": TURN, "max_tokens": 3}),
}
HONOURED: dict[str, Any] = {
    "model": "tiny",
    "cmc": [{"adapter": "bee", "alpha": 2.0}],
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "max_output_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "top_k": 7,
    "repeat_penalty": 1.5,
    "penalty_last_n": 9,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "n": 2,
    "stop": ["x"],
    "stop_sequences": ["x"],
    "seed": 7,
    "logit_bias": {"1": 2.0},
    "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "json_schema": SCHEMA,
    "regex": "a+",
    "lark": 'start: "a"',
    "grammar": 'root ::= "a"',
    "structured_outputs": {"regex": "a+"},
    "guided_json": SCHEMA,
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": 'root ::= "a"',
    "messages": [{"role": "user", "content": "b"}],
    "prompt": "b",
    "input": "b",
    "instructions": "b",
    "system": "b",
    "logprobs": True,
    "cmc_steer_thinking": False,
    "chat_template_kwargs": {"x": 1},
    "enable_thinking": False,
    "thinking": {"type": "disabled"},
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "tools": [TOOL],
    "echo": True,
}
"""Field -> a value that the ask differs by."""
OTHERWISE = {
    "logprobs": {"/v1/completions": 2},
    "tools": {
        "/v1/responses": [{"type": "function", "name": "now"}],
        "/v1/messages": [{"name": "now", "input_schema": {}}],
    },
}
"""The same on some routes."""
TOGETHER: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "cmc_plain": {"logprobs": True, "cmc_plain": True},
    "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
    "parallel_tool_calls": {"tools": [TOOL], "parallel_tool_calls": False},
}
"""Fields that need another one, which alone asks for something else."""
REFUSED: dict[str, Any] = {
    "functions": [{"name": "now"}],
    "function_call": "auto",
    "audio": {"voice": "x"},
    "modalities": ["audio"],
    "web_search_options": {},
    "suffix": "x",
    "best_of": 2,
    "previous_response_id": "resp_1",
}
TOLD_ELSEWHERE = {"stream", "stream_options", "store", "metadata", "continue_final_message"}
"""They change how an answer is sent or kept, not what is asked; the last can only be refused."""
FIELDS = [(path, name) for path, (kind, _) in ROUTES.items() for name in kind.model_fields]


def small(served: Served) -> Small:
    return served(adapters={"bee": 1.0})


def asked(server: Small, path: str, more: dict[str, Any]) -> Any:
    """The asks of a request, which may be refused after they were made."""
    server.model.asks.clear()
    server.client.post(path, json={**ROUTES[path][1], **more})
    asks = [repr(one) for one in server.model.asks]
    return asks


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_every_field_is_honoured_or_refused_by_name(served: Served, path: str, name: str) -> None:
    server = small(served)
    if name in TOLD_ELSEWHERE:
        return
    if name in REFUSED:
        value = REFUSED[name]
        answer = server.client.post(path, json={**ROUTES[path][1], name: value})
        assert answer.status_code in (400, 404)
        assert name in answer.json()["error"]["message"] + str(answer.json()["error"])
        return
    more = TOGETHER.get(name) or {name: OTHERWISE.get(name, {}).get(path, HONOURED.get(name))}
    if path in ("/v1/responses", "/v1/messages") and "tools" in more:
        more = {**more, "tools": OTHERWISE["tools"][path]}
    if name == "tool_choice" and path == "/v1/messages":
        more["tool_choice"] = {"type": "any"}
    without = {key: value for key, value in more.items() if key != name}
    assert asked(server, path, more) != asked(server, path, without), f"{name} changes nothing"
    assert asked(server, path, more), f"{name} was refused"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", sorted(fields.WITHOUT_EFFECT))
def test_a_field_without_effect_is_accepted(served: Served, path: str, name: str) -> None:
    kind, body = ROUTES[path]
    if name in kind.model_fields:  # it has an effect on this route
        return
    answer = small(served).client.post(path, json={**body, name: {"a": 1}})
    assert answer.status_code == 200, answer.text
    assert "cmc" not in answer.json()


@pytest.mark.parametrize("name", fields.NEUTRAL)
def test_a_field_that_would_change_the_reply_is_refused(name: str) -> None:
    def body(value: Any) -> ChatBody:
        return parse(ChatBody, json.dumps({"messages": TURN, name: value}).encode())

    for value in (*fields.NEUTRAL[name], None, [], ""):
        assert body(value).notices == []
    with pytest.raises(Refusal) as caught:
        body("something")
    assert caught.value.param == name


@pytest.mark.parametrize("path", ROUTES)
def test_any_other_field_is_passed_over_and_named(served: Served, path: str) -> None:
    told = small(served).post(path, **ROUTES[path][1], brightness=3, **{"x" * 200: 1})
    first, second = told["cmc"]["notices"]
    assert "'brightness'" in first and "passed over" in first
    assert len(second) < 200


def test_other_names_of_a_field_are_as_good() -> None:
    for name, other, value in (
        ("max_tokens", "n_predict", 5),
        ("repeat_penalty", "repetition_penalty", 1.5),
        ("penalty_last_n", "repeat_last_n", 5),
    ):
        body = parse(ChatBody, json.dumps({"messages": TURN, other: value}).encode())
        assert getattr(body, name) == value
        assert body.notices == []
