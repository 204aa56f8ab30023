"""Prompts and replies cut from texts, checked by hand on a base of one token a letter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from cmc_local.bench import passages
from cmc_local.bench.passages import Source
from cmc_local.errors import UsageError
from cmc_local.text.vocabulary import Role, Vocabulary

PIECES = ("ab", "cd", "bc", "café", *"abcdefghijklmnopqrstuvwxyz é")


def vocabulary(pieces: Sequence[str], begins: bool = True) -> Vocabulary:
    names = ("<s>", *pieces) if begins else tuple(pieces)
    roles = [Role.BOS] * begins + [Role.NORMAL] * len(pieces)
    texts = (b"",) * begins + tuple(piece.encode() for piece in pieces)
    return Vocabulary(texts, np.array(roles, np.uint8), names, None, 0 if begins else None)


class Letters:
    """Takes the first piece that fits; BOS in front, a space in front of it all if asked for."""

    def __init__(self, *, begins: bool = True, dummy_space: bool = False) -> None:
        self.vocabulary = vocabulary(PIECES, begins)
        self._begin = [0] if begins else []
        self._space = " " if dummy_space else ""

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        rest, found = self._space + text, list(self._begin)
        while rest:
            piece = next(one for one in PIECES if rest.startswith(one))
            found.append(len(self._begin) + PIECES.index(piece))
            rest = rest[len(piece) :]
        return found


def words(base: Letters, tokens: Sequence[int]) -> str:
    return "".join(base.vocabulary.names[token] for token in tokens)


def test_prompts_of_several_lengths_end_before_the_same_reply() -> None:
    base = Letters()
    found = Source(base, "text", "zyxwvutsrq").passages([2, 4], 3)
    assert words(base, found[4].prompt) == "<s>zyx"
    assert words(base, found[2].prompt) == "<s>x"
    assert words(base, found[4].reply) == words(base, found[2].reply) == "wvu"
    assert found[4].question == "zyx"
    assert (found[2].context, found[4].context) == (2, 4)


def test_a_model_without_bos_has_text_alone() -> None:
    base = Letters(begins=False)
    found = Source(base, "text", "zyxwvutsrq").passages([3], 2)[3]
    assert (words(base, found.prompt), words(base, found.reply)) == ("zyx", "wv")


def test_a_text_may_be_just_long_enough() -> None:
    source = Source(Letters(), "my.txt", "zyxwvu")  # 6 tokens: 3 of prompt beside BOS, 3 of reply
    assert len(source.passages([4], 3)[4].reply) == 3
    with pytest.raises(UsageError, match=r"my\.txt .* 6 .* 7"):
        source.passages([4], 4)
    with pytest.raises(UsageError, match="too short"):
        source.spread(4, 3, 2)


def test_sequences_at_once_begin_at_different_places() -> None:
    base = Letters()
    found = Source(base, "text", "zyxwvutsrqponmlkjihgfe").spread(4, 3, 4)
    assert words(base, found[0].prompt) == "<s>zyx"
    assert words(base, found[-1].reply).endswith("e")
    assert len({one.prompt for one in found}) == 4
    assert {one.context for one in found} == {4}
    assert {len(one.reply) for one in found} == {3}


@pytest.mark.parametrize("dummy_space", [False, True])
def test_a_given_reply_begins_where_its_prompt_ends(dummy_space: bool) -> None:
    base = Letters(dummy_space=dummy_space)
    found = passages.given(base, "editing", "zyx", "wvut", 3)
    assert words(base, found.prompt) == "<s>" + " " * dummy_space + "zyx"
    assert words(base, found.reply) == "wvu"
    assert found.question.lstrip() == "zyx"


def test_a_token_over_the_border_is_the_replys() -> None:
    base = Letters()
    found = passages.given(base, "editing", "xa", "bz", 9)
    assert words(base, found.prompt) == "<s>x"
    assert words(base, found.reply) == "abz"


@cases(st.text("abcdé", max_size=8), st.text("abcdé", max_size=8))
def test_prompt_and_reply_are_the_whole_text(prompt: str, reply: str) -> None:
    base = Letters()
    found = passages.given(base, "any", prompt, reply, 100)
    assert words(base, found.prompt[1:]) + words(base, found.reply) == prompt + reply
    assert prompt.startswith(found.question)
    longest = max(len(piece) for piece in PIECES)
    assert len(prompt) - len(found.question) < longest
