"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from cmc_local.server.limits import RequestLimits
from fakes import AB, NEWLINE, A, FakeBase, always, vocabulary
from server.conftest import Served


def test_there_and_back(served: Served) -> None:
    small = served()
    assert small.post("/tokenize", content="aba\n") == {"tokens": [AB, A, NEWLINE]}
    assert small.post("/detokenize", tokens=[AB, A, NEWLINE]) == {"content": "aba\n"}


def test_pieces(served: Served) -> None:
    small = served()
    told = small.post("/tokenize", content="ab", with_pieces=True)
    assert told == {"tokens": [{"id": AB, "piece": "ab"}]}
    small.base.vocabulary = vocabulary(b"\xe2\x82", b"b")
    told = small.post("/tokenize", content="b", with_pieces=True)
    assert told == {"tokens": [{"id": 2, "piece": "b"}]}
    assert small.post("/detokenize", tokens=[1]) == {"content": "\ufffd"}


def test_special_tokens_are_asked_for(served: Served) -> None:
    asked = []

    class Base(FakeBase):
        def tokenize(self, text: str, **how: object) -> list[int]:
            asked.append(how)
            return [1]

    small = served()
    small.model.base.tokenize = Base(always(0)).tokenize  # type: ignore[method-assign]
    small.post("/tokenize", content="a")
    small.post("/tokenize", content="a", add_special=True, parse_special=False)
    assert asked == [{"special": True, "bos": False}, {"special": False, "bos": None}]


def test_a_token_that_is_none_is_refused(served: Served) -> None:
    assert served().refused("/detokenize", 400, tokens=[1, 5])["param"] == "tokens"


def test_a_long_text_is_refused_before_it_is_cut(served: Served) -> None:
    # 64 tokens of at most 4 bytes ("</s>") fit the context: 256 bytes.
    small = served(limits=RequestLimits(text_bytes=10))
    assert len(small.post("/tokenize", content="a" * 256)["tokens"]) == 256
    error = small.refused("/tokenize", 400, content="a" * 257)
    assert (error["param"], error["code"]) == ("content", "context_length_exceeded")


def test_one_text_at_a_time_is_cut_into_tokens(served: Served) -> None:
    """llama.cpp can take long over one and cannot be stopped: none may take all threads."""
    small, cutting, most = served(), [], []
    real = small.base.tokenize

    def tokenize(text: str, **how: Any) -> list[int]:
        cutting.append(text)
        most.append(len(cutting))
        time.sleep(0.02)
        cutting.pop()
        return real(text, **how)

    async def ask() -> set[int]:
        transport = httpx.ASGITransport(small.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [client.post("/tokenize", json={"content": "a"}) for _ in range(4)]
            return {one.status_code for one in await asyncio.gather(*asked)}

    small.base.tokenize = tokenize  # type: ignore[method-assign]
    assert asyncio.run(ask()) == {200}
    assert most == [1, 1, 1, 1]


def test_vllms_shapes_as_lm_eval_asks_for_them(served: Served) -> None:
    small = served()
    asked = {"prompt": "aba\n", "add_special_tokens": False}
    assert small.post("/tokenize", **asked) == {"tokens": [AB, A, NEWLINE]}
    told = small.client.get("/tokenizer_info").json()
    assert set(told) == {"bos_token", "eos_token", "pad_token", "chat_template"}
    assert told["eos_token"] == small.base.vocabulary.names[small.base.vocabulary.eos_id or 0]
