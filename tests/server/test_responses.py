"""`/v1/responses`: OpenAI's newer requests as chats, asked by hand and by its own client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from cmc_local.server.bodies import parse
from cmc_local.server.errors import Refusal
from cmc_local.server.limits import RequestLimits
from cmc_local.server.responses import ResponsesBody, _input, as_chat
from server.conftest import Served
from server.small import Small

RESPONSES = "/v1/responses"


def openai(small: Small) -> OpenAI:
    address = "http://localhost:8080/v1"
    return OpenAI(base_url=address, api_key="none", http_client=small.client, max_retries=0)


def chat(**fields: Any) -> dict[str, Any]:
    body = parse(ResponsesBody, json.dumps({"input": "ab", **fields}).encode())
    return as_chat(body, _input(body.input)).model_dump(exclude_none=True)


def test_openais_client_is_answered(served: Served) -> None:
    small = served(adapters={"bee": 0.0})
    done = openai(small).responses.create(
        model="default", input="ab", instructions="b", max_output_tokens=3, extra_body={"cmc": []}
    )
    assert (done.output_text, done.status) == ("aaa", "incomplete")
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.usage is not None and done.usage.output_tokens == 3
    with openai(small).responses.stream(
        model="tiny+bee@1", input="ab", max_output_tokens=3
    ) as stream:
        events = [*stream]
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "bbb"
    assert [one.sequence_number for one in events] == [*range(len(events))]


def test_a_response_goes_on_from_another(served: Served) -> None:
    small = served()
    client = openai(small)
    first = client.responses.create(model="default", input="ab", instructions="b")
    client.responses.create(model="default", input="b", previous_response_id=first.id)
    # The instructions are of one response alone.
    assert small.model.asks[-1].prompt == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "aaa"},
        {"role": "user", "content": "b"},
    ]
    assert client.responses.retrieve(first.id).output_text == "aaa"
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)


def test_a_response_is_not_kept_where_that_is_not_wanted_or_others_came(served: Served) -> None:
    client = openai(served(limits=RequestLimits(responses=1)))
    first = client.responses.create(model="default", input="ab")
    unkept = client.responses.create(model="default", input="ab", store=False)
    assert client.responses.retrieve(first.id).id == first.id
    client.responses.create(model="default", input="ab")
    for name in (first.id, unkept.id):
        with pytest.raises(NotFoundError, match="send the whole input"):
            client.responses.create(model="default", input="b", previous_response_id=name)


def test_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": "Be it."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
        {"type": "function_call_output", "call_id": "c2", "output": "13"},
    ]
    found = chat(input=items, instructions="Now.")["messages"]
    assert [one["role"] for one in found] == [
        *("system", "developer", "user", "assistant", "tool", "tool"),
    ]
    assert [one["id"] for one in found[3]["tool_calls"]] == ["c1", "c2"]
    assert (found[4]["tool_call_id"], found[5]["content"]) == ("c1", "13")


def test_settings_become_a_chats_settings() -> None:
    schema = {"type": "object"}
    found = chat(
        tools=[{"type": "function", "name": "now", "parameters": schema, "strict": True}],
        tool_choice={"type": "function", "name": "now"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema}},
        reasoning={"effort": "low"},
        max_output_tokens=7,
    )
    function = {"name": "now", "parameters": schema, "strict": True}
    assert found["tools"] == [{"type": "function", "function": function}]
    assert found["response_format"]["json_schema"]["content"] == schema
    assert (found["reasoning_effort"], found["max_tokens"]) == ("low", 7)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"text": {"format": {"type": "xml"}}}, "response_format.type"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_cannot_be_done_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert "\n" not in str(caught.value)
