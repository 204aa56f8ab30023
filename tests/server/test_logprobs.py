"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import math

from cmc_local.engine.logprobs import TokenDetail
from cmc_local.server.logprobs import NEVER, TextLogprobs, chat_content, joined
from fakes import END, vocabulary

WORDS = vocabulary(b"a", b"\xe2\x82", b"\xac", b"a", " é".encode())
A, EURO, CENT, TWIN, E = 1, 2, 3, 4, 5


def test_chat_names_tokens_with_their_bytes() -> None:
    one = TokenDetail(E, -0.5, ((E, -0.5), (END, -math.inf)), -1.5, ((A, -0.25),))
    entry = {"token": " é", "logprob": -0.5, "bytes": [32, 0xC3, 0xA9]}
    top = [entry, {"token": "</s>", "logprob": NEVER, "bytes": None}]
    assert chat_content([one], WORDS, plain=False) == [{**entry, "top_logprobs": top}]
    plain = {"logprob": -1.5, "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}]}
    assert chat_content([one], WORDS, plain=True)[0]["cmc"] == plain


def test_a_part_of_a_character_is_shown_with_its_bytes() -> None:
    (entry,) = chat_content([TokenDetail(EURO, -1.0)], WORDS, plain=False)
    assert (entry["token"], entry["bytes"]) == ("\ufffd", [0xE2, 0x82])
    assert TextLogprobs(WORDS, 0).piece([TokenDetail(EURO, -1.0)])["tokens"] == [r"bytes:\xe2\x82"]


def test_offsets_count_whole_characters() -> None:
    lines = TextLogprobs(WORDS, 0, offset=10)
    first = lines.piece([TokenDetail(A, None), TokenDetail(EURO, -1.0)])
    second = lines.piece([TokenDetail(CENT, -2.0), TokenDetail(E, -3.0), TokenDetail(END, -4.0)])
    whole = joined([first, second])
    # a | first bytes of the euro | its last byte, which makes it whole | a space and é | the end
    assert whole["text_offset"] == [10, 11, 11, 12, 14]
    assert whole["token_logprobs"] == [None, -1.0, -2.0, -3.0, -4.0]
    assert whole["tokens"] == ["a", r"bytes:\xe2\x82", r"bytes:\xac", " é", "</s>"]


def test_of_two_tokens_with_one_text_the_likelier_counts() -> None:
    one = TokenDetail(A, -0.5, ((TWIN, -0.1), (A, -0.5), (END, -9.0)))
    assert TextLogprobs(WORDS, 3).piece([one])["top_logprobs"] == [{"a": -0.1, "</s>": -9.0}]


def test_a_first_token_has_neither_chance_nor_alternatives() -> None:
    piece = TextLogprobs(WORDS, 3).piece([TokenDetail(A, None)])
    assert (piece["token_logprobs"], piece["top_logprobs"]) == ([None], [None])
