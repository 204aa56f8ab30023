"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio
import threading
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
    small.service.serving().base.tokenize = Base(always(0)).tokenize  # type: ignore[method-assign]
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


def test_long_texts_leave_threads_for_replies(served: Served) -> None:
    """There are more of them than threads; one at a time is cut into tokens."""
    small, cutting, goes_on = served(), threading.Event(), threading.Event()
    real = small.base.tokenize

    def tokenize(text: str, **how: Any) -> list[int]:
        if text == "long":
            cutting.set()
            assert goes_on.wait(10)
        return real("a", **how)

    async def ask() -> Any:
        transport = httpx.ASGITransport(small.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            long = [client.post("/tokenize", json={"content": "long"}) for _ in range(40)]
            tasks = [asyncio.ensure_future(one) for one in long]
            while not cutting.is_set():
                await asyncio.sleep(0.001)
            try:
                body = {"prompt": "ab"}
                return await asyncio.wait_for(client.post("/v1/completions", json=body), 5)
            finally:
                goes_on.set()
                assert {one.status_code for one in await asyncio.gather(*tasks)} == {200}

    small.base.tokenize = tokenize  # type: ignore[method-assign]
    assert asyncio.run(ask()).status_code == 200
