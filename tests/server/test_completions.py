"""`/v1/completions`: texts and tokens go on; echo gives their log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fakes import AB, NEWLINE, A, B
from server.conftest import Served

TEXT = "/v1/completions"
LOG = math.log(math.e + 4)
"""Of the sum of exp(1), which "a" has, and four exp(0)."""


def test_a_text_goes_on(served: Served) -> None:
    told = served().post(TEXT, prompt="ab")
    assert told["object"] == "text_completion"
    assert told["id"].startswith("cmpl-")
    choice = {"index": 0, "text": "aaa", "logprobs": None, "finish_reason": "length"}
    assert told["choices"] == [choice]
    assert told["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("b", ["ba"]),
        ([B], ["ba"]),
        (["b", "\n"], ["ba", "\na"]),
        ([[B, AB], [NEWLINE]], ["baba", "\naa"[:2]]),
    ],
)
def test_texts_and_tokens_one_or_many(served: Served, prompt: Any, texts: list[str]) -> None:
    told = served().post(TEXT, prompt=prompt, echo=True, max_tokens=1)
    expected = [text if text.endswith("a") else text + "a" for text in texts]
    assert [choice["text"][-2:] for choice in told["choices"]] == [t[-2:] for t in expected]
    assert [choice["index"] for choice in told["choices"]] == list(range(len(texts)))


def test_choices_of_many_prompts_keep_their_order(served: Served) -> None:
    told = served().post(TEXT, prompt=["b", "\n"], n=2, echo=True, max_tokens=1)
    assert [choice["text"] for choice in told["choices"]] == ["ba", "ba", "\na", "\na"]
    assert told["usage"]["prompt_tokens"] == 2
    assert told["usage"]["completion_tokens"] == 4


def test_echo_gives_the_prompts_log_probabilities(served: Served) -> None:
    told = served().post(TEXT, prompt=[B, A, NEWLINE], echo=True, logprobs=1, max_tokens=1)
    choice = told["choices"][0]
    assert choice["text"] == "ba\na"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["b", "a", "\n", "a"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx([1 - LOG, -LOG, 1 - LOG])
    assert logprobs["top_logprobs"][0] is None
    assert [list(top) for top in logprobs["top_logprobs"][1:]] == [["a"]] * 3
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_a_prompt_alone_can_be_read(served: Served) -> None:
    told = served().post(TEXT, prompt="ba", echo=True, logprobs=0, max_tokens=0)
    choice = told["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ba", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, pytest.approx(1 - LOG)]
    assert told["usage"]["completion_tokens"] == 0


def test_the_shift_counts_in_what_is_read(served: Served) -> None:
    small = served(adapters={"x": 1.0})
    shifted = math.log(math.exp(3) + math.e + 3)
    fields: dict[str, Any] = {"prompt": [B, B], "echo": True, "logprobs": 0, "max_tokens": 0}
    steered = small.post(TEXT, **fields)["choices"][0]["logprobs"]["token_logprobs"]
    assert steered == [None, pytest.approx(3 - shifted)]
    plain = small.post(TEXT, model="base", **fields)["choices"][0]["logprobs"]["token_logprobs"]
    assert plain == [None, pytest.approx(-LOG)]


def test_without_echo_offsets_begin_after_the_prompt(served: Served) -> None:
    told = served().post(TEXT, prompt="ab\n", logprobs=0, max_tokens=2)
    assert told["choices"][0]["logprobs"]["text_offset"] == [3, 4]


def test_the_token_that_ends_a_text_has_a_log_probability(served: Served) -> None:
    """Who scores a text asks for one token more and cuts it off, whatever it is."""
    small = served(lambda tokens: (1, 0, 0, 0, 0))
    told = small.post(TEXT, prompt=[B, A], echo=True, logprobs=1, max_tokens=1)
    choice = told["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ba", "stop")
    assert choice["logprobs"]["tokens"] == ["b", "a", "</s>"]
    assert choice["logprobs"]["token_logprobs"][2] == pytest.approx(1 - LOG)


def test_a_stream_is_the_same_in_pieces(served: Served) -> None:
    small = served()
    fields: dict[str, Any] = {"prompt": "ba", "echo": True, "logprobs": 1}
    whole = small.post(TEXT, **fields)["choices"][0]
    chunks = small.events(TEXT, **fields, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(one["text"] for one in choices) == whole["text"] == "baaaa"
    tokens = [token for one in choices for token in one["logprobs"]["tokens"]]
    offsets = [offset for one in choices for offset in one["logprobs"]["text_offset"]]
    assert (tokens, offsets) == (whole["logprobs"]["tokens"], whole["logprobs"]["text_offset"])
    assert choices[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["total_tokens"] == 5


def test_an_empty_prompt_is_refused(served: Served) -> None:
    assert served().refused(TEXT, 400, prompt="")["message"].startswith("the prompt is empty")
