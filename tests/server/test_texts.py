"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import threading
import time

from fakes import AB, NEWLINE, A, FakeBase, always, vocabulary
from cmc_local.server.limits import RequestLimits
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
    """More of them than there are threads; one at a time is cut into tokens."""
    small, cutting, waiting = served(), [], threading.Event()

    def tokenize(text: str, **how: object) -> list[int]:
        cutting.append(text)
        assert waiting.wait(10)
        return [A]

    real = small.base.tokenize
    small.base.tokenize = tokenize  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=small.post, args=["/tokenize"], kwargs={"content": "a"})
        for _ in range(40)
    ]
    for one in threads:
        one.start()
    while not cutting:
        time.sleep(0.001)
    time.sleep(0.1)
    assert len(cutting) == 1
    small.base.tokenize = real  # type: ignore[method-assign]
    assert small.post("/v1/completions", prompt="ab")["choices"][0]["text"] == "aaa"
    waiting.set()
    for one in threads:
        one.join()
