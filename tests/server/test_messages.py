"""`/v1/messages`: Anthropic's requests as chats, asked by hand and by its own client."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError

from cmc_local.server.bodies import parse
from cmc_local.server.errors import Refusal
from cmc_local.server.guard import Policy
from cmc_local.server.messages import MessagesBody, as_chat
from server.conftest import Served
from server.small import Small

MESSAGES = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "ab"}]


def anthropic(small: Small, key: str = "none") -> Anthropic:
    return Anthropic(
        base_url="http://localhost:8080", api_key=key, http_client=small.client, max_retries=0
    )


def chat(**fields: Any) -> dict[str, Any]:
    body = MessagesBody.model_validate({"messages": HELLO, "max_tokens": 5, **fields})
    return as_chat(body).model_dump(exclude_none=True)


def test_anthropics_client_is_answered(served: Served) -> None:
    small = served(adapters={"bee": 0.0})
    done = anthropic(small).messages.create(
        model="default", max_tokens=3, messages=HELLO, system="b", extra_body={"cmc": []}
    )
    assert [one.text for one in done.content] == ["aaa"]
    assert (done.stop_reason, done.stop_sequence, done.model) == ("max_tokens", None, "default")
    assert (done.usage.input_tokens, done.usage.output_tokens) == (4, 3)  # b, ab, two line breaks
    with anthropic(small).messages.stream(
        model="tiny+bee@1", max_tokens=3, messages=HELLO
    ) as stream:
        assert "".join(stream.text_stream) == "bbb"
        assert stream.get_final_message().usage.output_tokens == 3


def test_a_stop_text_is_named(served: Served) -> None:
    done = served().post(MESSAGES, messages=HELLO, max_tokens=3, stop_sequences=["x", "aa"])
    assert (done["stop_reason"], done["stop_sequence"]) == ("stop_sequence", "aa")
    assert done["content"] == []


def test_tokens_are_counted_as_the_base_has_them(served: Served) -> None:
    small = served()
    found = anthropic(small).messages.count_tokens(model="default", messages=HELLO)
    assert (
        found.input_tokens
        == small.post(MESSAGES, messages=HELLO, max_tokens=1)["usage"]["input_tokens"]
    )


def test_errors_have_anthropics_shape_from_the_key_on(served: Served) -> None:
    small = served(policy=Policy(key="secret"))
    for key, model, status, kind in (
        ("wrong", "default", 401, "authentication_error"),
        ("secret", "nobody", 404, "not_found_error"),
    ):
        with pytest.raises(APIStatusError) as caught:
            anthropic(small, key).messages.create(model=model, max_tokens=1, messages=HELLO)
        assert caught.value.status_code == status
        body = caught.value.body
        assert isinstance(body, dict) and body["type"] == "error"
        assert body["error"]["type"] == kind


def test_a_body_without_a_length_is_refused(served: Served) -> None:
    answer = served().client.post(MESSAGES, json={"messages": HELLO})
    assert answer.status_code == 400
    assert "max_tokens" in answer.json()["error"]["message"]


def test_turns_become_messages() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "t1", "name": "now", "input": {"at": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "12", "is_error": True},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be", "cache_control": {}}, {"type": "text", "text": " it."}]
    call = {"name": "now", "arguments": '{"at": 1}'}
    assert chat(messages=turns, system=system)["messages"] == [
        {"role": "system", "content": "Be it."},
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Error: 12"},
        {"role": "user", "content": "and?"},
    ]


def test_settings_become_a_chats_settings() -> None:
    tool = {"name": "now", "description": "The time", "input_schema": {"type": "object"}}
    function = {"name": "now", "description": "The time", "parameters": {"type": "object"}}
    found = chat(
        tools=[tool],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
        top_k=5,
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    )
    assert found["tools"] == [{"type": "function", "function": function}]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("required", False)
    assert (found["enable_thinking"], found["top_k"], found["max_tokens"]) == (True, 5, 5)
    assert found["reasoning_effort"] == "low"
    named = chat(tools=[tool], tool_choice={"type": "tool", "name": "now"})
    assert named["tool_choice"]["function"] == {"name": "now"}
    assert chat(thinking={"type": "disabled"})["enable_thinking"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "content[0]"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_cannot_be_done_is_named(fields: dict[str, Any], param: str) -> None:
    import json

    body = {"messages": HELLO, "max_tokens": 5, **fields}
    with pytest.raises(Refusal) as caught:
        as_chat(parse(MessagesBody, json.dumps(body).encode()))
    assert (caught.value.param or "").endswith(param)
    assert "\n" not in str(caught.value)
