"""Bodies -> asks, within the server's limits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from cmc_local.model.requests import Ask
from cmc_local.server.bodies import MAX_COUNT, ChatBody, CompletionBody, parse
from cmc_local.server.errors import Refusal
from cmc_local.server.limits import RequestLimits
from cmc_local.server.requests import SEEDS, Setting, chat_asks, completion_asks
from cmc_local.settings import Sampling

SETTING = Setting(
    base="tiny",
    alphas={"x": 1.0},
    vocabulary=5,
    text_bytes=100,
    sampling=Sampling(temperature=0.5, top_k=7, max_tokens=9, grammar='root ::= "a"'),
    base_prompt="adapter",
    chat_template=None,
    limits=RequestLimits(choices=6, stops=2, stop_characters=3, logprobs=4, logit_bias=2),
)


def chat(setting: Setting = SETTING, **fields: Any) -> list[Ask]:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return chat_asks(parse(ChatBody, json.dumps(body).encode()), setting)


def complete(**fields: Any) -> list[Ask]:
    body = {"prompt": "a", **fields}
    return completion_asks(parse(CompletionBody, json.dumps(body).encode()), SETTING)


def refusal(**fields: Any) -> tuple[int, str | None]:
    with pytest.raises(Refusal) as error:
        complete(**fields) if "prompt" in fields else chat(**fields)
    return error.value.status, error.value.param


def test_what_a_request_leaves_open_is_the_servers() -> None:
    (ask,) = chat()
    assert ask.sampling == SETTING.sampling
    assert ask.base_prompt == "adapter"
    assert (ask.alphas, ask.top_logprobs, ask.plain, ask.echo) == (None, None, False, False)
    assert ask.prompt == [{"role": "user", "content": "hello"}]


def test_every_sampling_field_arrives() -> None:
    given = {"temperature": 1.5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "top_k": 3,
             "repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3,
             "seed": 5}  # fmt: skip
    (ask,) = chat(**given, stop=["x", ""], max_tokens=4, logit_bias={"1": 2, "3": -100})
    assert ask.sampling == replace(
        SETTING.sampling,
        **given,
        stop=("x",),
        max_tokens=4,
        logit_bias=((1, 2.0), (3, -math.inf)),
    )


def test_spellings_of_the_same() -> None:
    assert chat(max_tokens=4, max_completion_tokens=3)[0].sampling.max_tokens == 3
    assert chat(top_k=-1)[0].sampling.top_k == 0
    assert chat(temperature=1e-30)[0].sampling.temperature == 0.0
    assert chat(stop="x")[0].sampling.stop == ("x",)


def test_choices_have_seeds_of_their_own() -> None:
    assert [one.sampling.seed for one in chat(n=3, seed=7)] == [7, 8, 9]
    assert [one.sampling.seed for one in chat(n=2)] == [None, None]
    assert [one.sampling.seed for one in chat(n=2, seed=SEEDS - 1)] == [SEEDS - 1, 0]
    assert 0 <= (chat(seed=-2)[0].sampling.seed or 0) < SEEDS


def test_minus_one_is_a_new_seed_and_a_full_context() -> None:
    assert chat(seed=-1)[0].sampling.seed is None
    assert chat(max_tokens=-1)[0].sampling.max_tokens == MAX_COUNT
    assert chat(max_completion_tokens=-1, max_tokens=3)[0].sampling.max_tokens == MAX_COUNT


def test_the_choices_of_the_first_prompt_come_first() -> None:
    asks = complete(prompt=["a", "b"], n=2, seed=1)
    assert [(one.prompt, one.sampling.seed) for one in asks] == [
        *(("a", 1), ("a", 2)),
        *(("b", 1), ("b", 2)),
    ]


def test_details_are_asked_for() -> None:
    (ask,) = chat(logprobs=True, top_logprobs=4, cmc_plain=True)
    assert (ask.top_logprobs, ask.plain) == (4, True)
    assert chat(logprobs=True)[0].top_logprobs == 0
    (ask,) = complete(logprobs=0, echo=True)
    assert (ask.top_logprobs, ask.echo) == (0, True)


def test_which_adapters_act() -> None:
    assert chat(model="tiny")[0].alphas == {}
    assert chat(model="base+x@0.5")[0].alphas == {"x": 0.5}
    assert chat(model="base", cmc=[{"adapter": "x"}])[0].alphas == {"x": 1.0}
    assert chat(model="base+x", cmc=[])[0].alphas == {}


def test_guides_take_the_place_of_the_servers() -> None:
    schema = {"type": "array"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    sampling = chat(response_format=form)[0].sampling
    assert sampling.grammar is None
    assert json.loads(sampling.json_schema or "") == schema
    sampling = chat(response_format={"type": "json_object"})[0].sampling
    assert json.loads(sampling.json_schema or "") == {"type": "object"}
    sampling = chat(response_format={"type": "text"})[0].sampling
    assert (sampling.grammar, sampling.json_schema) == (None, None)
    assert chat(grammar='root ::= "b"')[0].sampling.grammar == 'root ::= "b"'


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"n": 7}, 400, "n"),
        ({"prompt": ["a"] * 4, "n": 2}, 400, "n"),
        ({"stop": ["a", "b", "c"]}, 400, "stop"),
        ({"stop": "abcd"}, 400, "stop"),
        ({"logprobs": True, "top_logprobs": 5}, 400, "top_logprobs"),
        ({"prompt": "a", "logprobs": 5}, 400, "logprobs"),
        ({"logit_bias": {"0": 1, "1": 1, "2": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"1": 101}}, 400, "logit_bias"),
        ({"prompt": [[1, 5]]}, 400, "prompt[0]"),
        ({"prompt": [-1]}, 400, "prompt[0]"),
        ({"model": "gpt-4"}, 404, "model"),
        ({"cmc": [{"adapter": "y"}]}, 404, "cmc[0].adapter"),
        ({"grammar": "g", "response_format": {"type": "json_object"}}, 400, "grammar"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content",
        ),
        ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs.messages"),
    ],
)
def test_what_is_beyond_a_limit_is_refused(fields: Any, status: int, param: str) -> None:
    assert refusal(**fields) == (status, param)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    (ask,) = chat(
        messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    )
    assert ask.prompt == [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hello"},
    ]


def test_the_chat_template_is_told_what_clients_want_it_to_know() -> None:
    (ask,) = chat(chat_template_kwargs={"enable_thinking": False, "x": [1]}, reasoning_effort="low")
    assert ask.template_values == {"enable_thinking": False, "x": [1], "reasoning_effort": "low"}
    assert chat(enable_thinking=True)[0].template_values == {"enable_thinking": True}


def test_thoughts_are_steered_unless_a_request_says_otherwise() -> None:
    assert chat()[0].sampling.steer_thinking
    assert not chat(cmc_steer_thinking=False)[0].sampling.steer_thinking


def test_limits_are_above_nothing() -> None:
    from cmc_local.errors import UsageError

    with pytest.raises(UsageError, match="queue must be above 0"):
        RequestLimits(queue=0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b" * 101]}, "prompt[1]"),
        ({"prompt": "\u20ac" * 34}, "prompt[0]"),  # 34 characters of 3 bytes
        ({"messages": [{"role": "user", "content": "b" * 101}]}, "messages[0].content"),
    ],
)
def test_a_text_that_never_fits_is_refused_before_it_is_cut_into_tokens(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(Refusal) as error:
        complete(**fields) if "prompt" in fields else chat(**fields)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", param)
    assert complete(prompt="\u20ac" * 33)


def test_what_a_client_sent_is_quoted_in_short() -> None:
    for fields in ({"messages": [{"role": "x" * 9000, "content": "a"}]},
                   {"logit_bias": {"9" * 9000: 1}}, {"model": "x" * 9000},
                   {"cmc": [{"adapter": "x" * 9000}]}, {"prompt": [10**400]}):  # fmt: skip
        with pytest.raises(Refusal) as error:
            complete(**fields) if "prompt" in fields else chat(**fields)
        assert len(str(error.value)) < 250
