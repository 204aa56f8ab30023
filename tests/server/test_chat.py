"""`/v1/chat/completions`, asked by hand and by OpenAI's own client."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from cmc_local.server.limits import RequestLimits
from fakes import always
from server.conftest import Served
from server.small import Gate, Small

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "ab"}]


def openai(small: Small) -> OpenAI:
    return OpenAI(
        base_url="http://localhost:8080/v1",
        api_key="none",
        http_client=small.client,
        max_retries=0,
    )


def test_an_answer_is_whole(served: Served) -> None:
    told = served().post(CHAT, messages=HELLO)
    assert told["object"] == "chat.completion"
    assert told["id"].startswith("chatcmpl-")
    assert told["model"] == "tiny"
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "aaa", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    usage = told["usage"]  # "ab" and a newline are two tokens
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 3, 5)


def test_what_a_cache_held_is_told(served: Served) -> None:
    small = served()
    assert small.post(CHAT, messages=HELLO)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = small.post(CHAT, messages=HELLO)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 1  # the last is decoded anew
    assert again["timings"]["cache_n"] == 1
    assert (again["timings"]["prompt_n"], again["timings"]["predicted_n"]) == (1, 3)


def test_a_stream_has_a_role_pieces_a_reason_and_its_cost(served: Served) -> None:
    chunks = served().events(CHAT, messages=HELLO, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"].get("content", "") for one in choices) == "aaa"
    assert [one["finish_reason"] for one in choices] == [None] * (len(choices) - 1) + ["length"]
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_without_usage_says_nothing_of_it(served: Served) -> None:
    assert all("usage" not in chunk for chunk in served().events(CHAT, messages=HELLO))


def test_several_choices_at_once(served: Served) -> None:
    small = served()
    told = small.post(CHAT, messages=HELLO, n=5)
    assert [one["index"] for one in told["choices"]] == [0, 1, 2, 3, 4]
    assert told["usage"]["prompt_tokens"] == 2  # the prompt counts once
    assert told["usage"]["completion_tokens"] == 15
    chunks = small.events(CHAT, messages=HELLO, n=3)
    for index in range(3):
        deltas = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(one["delta"].get("content", "") for one in deltas) == "aaa"
        assert deltas[0]["delta"]["role"] == "assistant"
        assert deltas[-1]["finish_reason"] == "length"


def test_the_field_and_the_name_steer_and_rows_share_a_batch(served: Served) -> None:
    small = served(adapters={"x": 0.0})

    def said(**fields: Any) -> str:
        text: str = small.post(CHAT, messages=HELLO, **fields)["choices"][0]["message"]["content"]
        return text

    assert said() == said(model="tiny") == said(cmc=[]) == "aaa"
    assert said(cmc=[{"adapter": "x", "alpha": 1}]) == said(model="tiny+x@1") == "bbb"
    assert said(model="tiny+x@1", cmc=[]) == "aaa"


def test_log_probabilities_are_those_after_the_shift(served: Served) -> None:
    small = served(adapters={"x": 1.0})
    told = small.post(
        CHAT, messages=HELLO, max_tokens=1, logprobs=True, top_logprobs=2, cmc_plain=True
    )
    (entry,) = told["choices"][0]["logprobs"]["content"]
    # Shifted logits are 0, 1, 3, 0, 0 and plain ones 0, 1, 0, 0, 0.
    shifted = math.log(math.exp(3) + math.e + 3)
    plain = math.log(math.e + 4)
    assert entry["token"] == "b"
    assert entry["bytes"] == [98]
    assert entry["logprob"] == pytest.approx(3 - shifted)
    assert [one["token"] for one in entry["top_logprobs"]] == ["b", "a"]
    assert entry["top_logprobs"][1]["logprob"] == pytest.approx(1 - shifted)
    assert entry["cmc"]["logprob"] == pytest.approx(-plain)
    assert entry["cmc"]["top_logprobs"][0]["token"] == "a"
    assert entry["cmc"]["top_logprobs"][0]["logprob"] == pytest.approx(1 - plain)
    streamed = small.events(CHAT, messages=HELLO, logprobs=True, cmc_plain=True)
    content = [c["choices"][0]["logprobs"] for c in streamed]
    assert sum(len(one["content"]) for one in content if one) == 3


def test_an_end_of_text_and_a_stop_text_are_both_a_stop(served: Served) -> None:
    ends = served(lambda tokens: (1, 0, 0, 0, 0) if len(tokens) > 3 else (0, 1, 0, 0, 0))
    choice = ends.post(CHAT, messages=HELLO)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("aa", "stop")
    choice = served().post(CHAT, messages=HELLO, stop=["aa"])["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


def test_a_turn_that_was_left_out_is_told(served: Served) -> None:
    small = served(n_ctx=16)
    turns = [{"role": "user", "content": "ab" * 10}, {"role": "assistant", "content": "a"}]
    messages = [*turns, *HELLO]
    assert "left out" in small.post(CHAT, messages=messages)["cmc"]["notices"][0]
    assert "left out" in small.events(CHAT, messages=messages)[-1]["cmc"]["notices"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_with_a_status(served: Served, stream: bool) -> None:
    messages = [{"role": "user", "content": "ab" * 70}]
    error = served().refused(CHAT, 400, messages=messages, stream=stream)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "a"}],
        [{"role": "system", "content": "a"}],
        [{"role": "user", "content": " "}],
    ],
)
def test_messages_that_ask_nothing_are_refused(served: Served, messages: list[Any]) -> None:
    error = served().refused(CHAT, 400, messages=messages)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [*HELLO, *HELLO],
        [*HELLO, {"role": "assistant", "content": "a"}],
        [{"role": "system", "content": "b"}, {"role": "developer", "content": "b"}, *HELLO],
        [*HELLO, {"role": "assistant", "content": None}, *HELLO],
        [
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "b"},
        ],
    ],
)
def test_histories_as_programs_send_them_are_answered(served: Served, messages: list[Any]) -> None:
    assert served().post(CHAT, messages=messages)["choices"][0]["message"]["content"]


def test_an_error_after_the_first_piece_is_a_line_of_the_stream(served: Served) -> None:
    def breaks(tokens: tuple[int, ...]) -> tuple[float, ...]:
        if len(tokens) > 3:
            raise RuntimeError("a secret")
        return (0, 1, 0, 0, 0)

    small = served(breaks)
    with small.client.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert '"error"' in lines[-1]
    assert "[DONE]" not in lines[-1]
    assert "secret" not in lines[-1]
    small.wait("idle")
    assert small.client.post(CHAT, json={"messages": HELLO}).status_code == 500
    assert small.post(CHAT, messages=HELLO, max_tokens=1)  # and the server goes on


def test_a_full_queue_is_429(served: Served) -> None:
    gate = Gate()
    small = served(gate, parallel=1, limits=RequestLimits(queue=2))
    body = {"messages": HELLO, "n": 2}
    first = threading.Thread(target=small.client.post, args=[CHAT], kwargs={"json": body})
    first.start()
    small.wait("waiting")
    answer = small.client.post(CHAT, json={"messages": HELLO, "n": 2})
    gate.open.set()
    first.join()
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) > 0


def test_who_waited_too_long_is_503(served: Served) -> None:
    gate = Gate()
    limits = RequestLimits(patience=0.2)
    small = served(gate, parallel=1, limits=limits, patience=0.2)
    first = threading.Thread(
        target=small.client.post, args=[CHAT], kwargs={"json": {"messages": HELLO}}
    )
    first.start()
    small.wait("active")
    threading.Timer(0.4, gate.open.set).start()
    answer = small.client.post(CHAT, json={"messages": HELLO})
    first.join()
    # The model looks at the queue between steps: the first reply's held it up.
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "waited_too_long"


def test_openais_client_chats_and_streams(served: Served) -> None:
    small = served(adapters={"x": 0.0})
    client = openai(small)
    told = client.chat.completions.create(
        model="default",
        messages=HELLO,
        logprobs=True,
        top_logprobs=1,
        max_completion_tokens=2,
        extra_body={"cmc": [{"adapter": "x", "alpha": 1.0}]},
    )
    assert told.choices[0].message.content == "bb"
    logprobs = told.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].top_logprobs[0].token == "b"
    assert told.usage is not None and told.usage.prompt_tokens_details is not None
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "aaa"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


def test_openais_client_sees_errors_as_errors(served: Served) -> None:
    client = openai(served())
    with pytest.raises(APIStatusError) as error:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (error.value.status_code, error.value.code) == (404, "model_not_found")
    with pytest.raises(APIStatusError) as error:
        client.chat.completions.create(model="tiny", messages=HELLO, n=999)
    assert (error.value.status_code, error.value.param) == (400, "n")


def test_sampling_reaches_the_sampler(served: Served) -> None:
    small = served(always(0, 1, 0, 0, 0))
    small.post(CHAT, messages=HELLO, seed=7, n=2, logit_bias={"1": -5}, top_k=2, max_tokens=1)
    assert [one.seed for one in small.samplings] == [7, 8]
    assert small.samplings[0].logit_bias == ((1, -5.0),)
    assert small.samplings[0].top_k == 2
