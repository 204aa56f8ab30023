"""`/v1/embeddings`, in both encodings."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from cmc_local.errors import GGUFError, PromptTooLong
from cmc_local.server.limits import RequestLimits
from fakes import AB, A
from server.conftest import Served
from server.small import Small, vectors

PATH = "/v1/embeddings"


@pytest.fixture
def small(served: Served, monkeypatch: pytest.MonkeyPatch) -> Small:
    small = served(adapters={"x": 1.0}, limits=RequestLimits(inputs=3))
    monkeypatch.setattr(small.model, "embed", vectors, raising=False)
    return small


@pytest.mark.parametrize(
    ("given", "expected"),
    [("ab", [[1, AB]]), (["a", "aba"], [[1, A], [2, AB]]), ([A, AB], [[2, A]]), ([[A]], [[1, A]])],
)
def test_texts_and_tokens_become_vectors(small: Small, given: Any, expected: Any) -> None:
    told = small.post(PATH, input=given)
    assert [one["embedding"] for one in told["data"]] == expected
    assert [one["index"] for one in told["data"]] == list(range(len(expected)))
    count = sum(length for length, _ in expected)
    assert told["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_base64_is_of_little_endian_floats(small: Small) -> None:
    told = small.post(PATH, input="ab", encoding_format="base64")
    data = base64.b64decode(told["data"][0]["embedding"])
    assert np.frombuffer(data, "<f4").tolist() == [1, AB]


def test_openais_client_reads_them(small: Small) -> None:
    client = OpenAI(base_url="http://localhost:8080/v1", api_key="x", http_client=small.client)
    told = client.embeddings.create(model="tiny", input=["a", "ab"])
    assert [one.embedding for one in told.data] == [[1, A], [1, AB]]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": ["a"] * 4}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [99]}, 400, "input[0]"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions"),
        ({"input": "a", "model": "other"}, 404, "model"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
def test_what_cannot_be_done_is_refused(
    small: Small, fields: dict[str, Any], status: int, param: str
) -> None:
    assert small.refused(PATH, status, **fields)["param"] == param


@pytest.mark.parametrize(
    ("error", "status"), [(GGUFError("it embeds none"), 501), (PromptTooLong("too long"), 400)]
)
def test_a_model_that_embeds_none_says_so(
    small: Small, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def embed(texts: Any) -> Any:
        raise error

    monkeypatch.setattr(small.model, "embed", embed, raising=False)
    assert small.refused(PATH, status, input="a")["message"] == str(error)
