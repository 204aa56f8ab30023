"""Bodies as clients send them: what is taken, ignored, refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.server.bodies import ChatBody, CompletionBody, TokenizeBody, parse
from cmc_local.server.errors import Refusal

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"messages": HELLO, **fields}).encode())


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"prompt": "a", **fields}).encode())


def refused(kind: Any, data: bytes) -> Refusal:
    with pytest.raises(Refusal) as error:
        parse(kind, data)
    assert error.value.status == 400
    assert "\n" not in str(error.value)
    return error.value


def test_fields_that_mean_nothing_here_are_ignored() -> None:
    body = chat(user="me", metadata={"a": 1}, store=True, parallel_tool_calls=False, x=[1])
    assert body.messages[0].role == "user"


def test_null_is_as_good_as_nothing() -> None:
    names = ("model", "max_tokens", "temperature", "n", "stop", "seed", "logit_bias", "cmc",
             "response_format", "stream", "stream_options", "tools", "tool_choice")  # fmt: skip
    assert chat(**dict.fromkeys(names)) == chat()


def test_no_tools_are_no_trouble() -> None:
    assert chat(tools=[], tool_choice="auto").messages == chat().messages
    named = chat(tools=[{"type": "function"}], tool_choice="none", modalities=["text"])
    assert named.messages == chat().messages


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"cmc_plain": True}, "cmc_plain"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"stop": [1]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"cmc": [{"alpha": 1}]}, "cmc[0].adapter"),
        ({"cmc": "instruct"}, "cmc"),
        ({"cmc": [{"adapter": "x", "alpha": 1e39}]}, "cmc[0].alpha"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ],
)
def test_a_wrong_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    data = json.dumps({"messages": HELLO, **fields}).encode()
    assert refused(ChatBody, data).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": 7}, "prompt"),
    ],
)
def test_a_wrong_completion_field_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(CompletionBody, json.dumps({"prompt": "a", **fields}).encode()).param == param


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_are_one_or_more_texts_or_tokens(given: Any, prompts: list[Any]) -> None:
    assert completion(prompt=given).prompt == prompts


def test_what_asks_for_no_more_than_is_done_is_taken() -> None:
    assert completion(best_of=2, n=2, suffix="", stop="x", echo=True, max_tokens=0).stop == ["x"]
    assert not completion(stream_options={"include_usage": False}).include_usage
    assert completion(stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff", b'{"content": "\\ud800"}', b'{"content": 1}',
     b'{"content": NaN}', b"[" * 5000],
)  # fmt: skip
def test_what_is_no_such_body_is_refused_in_a_line(data: bytes) -> None:
    assert refused(TokenizeBody, data).status == 400


def test_infinity_is_no_number() -> None:
    for number in (b"Infinity", b"NaN", b"1e999"):
        data = b'{"messages": [{"role": "user"}], "temperature": ' + number + b"}"
        assert refused(ChatBody, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ChatBody.model_fields)), JSON))
def test_any_values_make_a_body_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        chat(**fields)
    except Refusal as error:
        assert error.status == 400
