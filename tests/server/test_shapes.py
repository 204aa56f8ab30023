"""Pieces -> choices, where no whole server is needed to see it."""

from __future__ import annotations

from cmc_local.engine.logprobs import TokenDetail
from cmc_local.model.replies import Piece
from cmc_local.server.shapes import Chat, Text
from fakes import vocabulary

WORDS = vocabulary(b" a", b"b")
A, B = 1, 2


def detail(token: int) -> TokenDetail:
    return TokenDetail(token, -1.0)


def test_the_space_before_a_text_is_not_counted() -> None:
    """SentencePiece reads "ab" as " a" and "b"; the text that comes back has no such space."""
    prompt = Piece(" ab", (A, B), details=(detail(A), detail(B)), echo=True)
    last = Piece("b", (B,), "length", details=(detail(B),))
    for given, offsets in (("ab", [0, 1, 2]), (" ab", [0, 2, 3])):
        shape = Text(WORDS, lambda _, text=given: text, alternatives=0, echo=True)  # type: ignore[misc]
        whole = shape.whole(0, [prompt, last])
        assert whole["text"] == given + "b"
        assert whole["logprobs"]["text_offset"] == offsets


def test_each_choice_has_offsets_of_its_own() -> None:
    shape = Text(WORDS, lambda index: "x" * index, alternatives=0, echo=False)
    piece = Piece("b", (B,), details=(detail(B),))
    for index, begins in ((0, 0), (3, 3), (0, 1), (3, 4)):
        chunk = shape.chunk(index, piece)
        assert chunk is not None
        assert chunk["logprobs"]["text_offset"] == [begins]


def test_a_notice_is_no_chunk() -> None:
    notice = Piece("", notice="the context is full")
    assert Chat(WORDS, logprobs=True, plain=False).chunk(0, notice) is None
    assert Text(WORDS, lambda _: "", alternatives=None, echo=False).chunk(0, notice) is None


def test_the_last_chunk_of_a_chat_has_the_held_back_text() -> None:
    shape = Chat(WORDS, logprobs=False, plain=False)
    assert shape.chunk(1, Piece("b", (B,), "stop")) == {
        "index": 1,
        "delta": {"content": "b"},
        "logprobs": None,
        "finish_reason": "stop",
    }
    last = shape.chunk(1, Piece("", (), "stop"))
    assert last is not None and last["delta"] == {}


def test_thoughts_stand_beside_the_content() -> None:
    pieces = [
        Piece("", (A,), thinking="two"),
        Piece("b", (B,), thinking=" more"),
        Piece("", (), "stop"),
    ]
    shape = Chat(WORDS, logprobs=False, plain=False)
    chunks = [shape.chunk(0, piece) for piece in pieces]
    assert [one and one["delta"] for one in chunks] == [
        {"reasoning_content": "two"},
        {"content": "b", "reasoning_content": " more"},
        {},
    ]
    message = shape.whole(0, pieces)["message"]
    assert (message["content"], message["reasoning_content"]) == ("b", "two more")
    assert "reasoning_content" not in shape.whole(0, [Piece("b", (B,), "stop")])["message"]
