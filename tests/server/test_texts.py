"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

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
