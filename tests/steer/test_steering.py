"""A delta kept in step with a reply: what is fed, what is rolled back, which rows are at hand.

The delta's rule below gives after n tokens the row (n, last token, 0, 0, 0), so that a row tells
what it was computed from. `ab` is one token wherever "a" and "b" stand together.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmc_local.steer.mid_token import MidToken
from cmc_local.steer.steering import ROWS_HELD, Steering, advance
from cmc_local.text.alignment import DeltaPrompt, DeltaTokenizer, common_prefix
from cmc_local.text.prompts import PromptForm
from fakes import AB, NEWLINE, A, B, FakeShift, tokenizer_json, vocabulary

FORM = PromptForm("tiny", "{query}\n")


def count_and_last(tokens: tuple[int, ...]) -> tuple[float, ...]:
    return (float(len(tokens)), float(tokens[-1]), 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def tokenizer() -> DeltaTokenizer:
    return DeltaTokenizer(tokenizer_json())


def prompt(tokenizer: DeltaTokenizer, *texts: str) -> DeltaPrompt:
    """Questions and answers in turn, the last a question."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return tokenizer.prompt(FORM, messages, max_tokens=32)  # type: ignore[arg-type]


def steering(
    tokenizer: DeltaTokenizer, *, context: int = 64, mid_token: bool = False
) -> tuple[Steering, FakeShift]:
    source = FakeShift(count_and_last, context=context)
    joins = MidToken(vocabulary(), vocabulary()) if mid_token else None
    return Steering(source, tokenizer, joins), source


def shift(mine: Steering) -> NDArray[np.float32]:
    """The delta's logits for what comes next, (5,) float32."""
    return mine.forecasts[0].shift


def consumed(mine: Steering) -> tuple[int, ...]:
    return tuple(mine._consumed)


def row_before(mine: Steering, back: int) -> NDArray[np.float32]:
    """The logits before the last `back` tokens, (5,) float32; 0 is `shift`."""
    return mine._rows[mine._ends[0].length - back]


def test_the_prompt_is_fed_at_once(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "ba"))
    assert source.fed == [(B, A, NEWLINE)]
    assert shift(mine).tolist() == [3, NEWLINE, 0, 0, 0]


def test_a_token_that_joins_the_one_before_rolls_back_one(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    mine.push(b"a")
    mine.push(b"b")
    assert source.streams[0] == [B, NEWLINE, AB]
    assert source.fed[1:] == [(A,), (AB,)]
    assert shift(mine).tolist() == [3, AB, 0, 0, 0]


def test_half_a_character_changes_nothing(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    mine.push("é".encode()[:1])
    assert len(source.fed) == 1
    assert shift(mine).tolist() == [2, NEWLINE, 0, 0, 0]


def test_the_next_turn_feeds_only_what_is_new(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    mine.push(b"aa")
    source.fed.clear()
    mine.begin(prompt(tokenizer, "b", "aa", "ab"))
    assert source.fed == [(0, AB, NEWLINE)]  # EOS after the answer, then the question
    assert source.streams[0] == [B, NEWLINE, A, A, 0, AB, NEWLINE]


def test_the_same_prompt_again_still_has_its_row(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    mine.push(b"a" * 40)
    mine.begin(prompt(tokenizer, "b"))
    assert source.streams[0] == [B, NEWLINE]
    assert shift(mine).tolist() == [2, NEWLINE, 0, 0, 0]


def test_rows_behind_are_at_hand_after_a_roll_back(tokenizer: DeltaTokenizer) -> None:
    mine, _ = steering(tokenizer, mid_token=True)
    mine.begin(prompt(tokenizer, "b"))
    for data in (b"a", b"a", b"b"):
        mine.push(data)
    assert consumed(mine) == (B, NEWLINE, A, AB)
    assert [row_before(mine, back)[1] for back in (3, 2, 1, 0)] == [B, NEWLINE, A, AB]


def test_rows_behind_are_computed_again_after_a_long_roll_back(tokenizer: DeltaTokenizer) -> None:
    mine, _ = steering(tokenizer, mid_token=True)
    mine.begin(prompt(tokenizer, "babba"))
    mine.push(b"a" * 40)
    mine.begin(prompt(tokenizer, "babba"))
    assert consumed(mine) == (B, AB, B, A, NEWLINE)
    assert [row_before(mine, back)[1] for back in (4, 3, 2, 1, 0)] == [B, AB, B, A, NEWLINE]


def test_rows_of_a_scored_text_are_not_kept_for_ever(tokenizer: DeltaTokenizer) -> None:
    mine, _ = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    mine.plan([b"a"] * 50)
    advance([mine])
    assert len(mine.forecasts) == 50
    for _ in range(2):
        mine.begin(prompt(tokenizer, "a"))
        assert len(mine._rows) + len(mine._spare) <= 2 * ROWS_HELD


def test_inside_a_token_the_base_is_offered_the_rest_of_it(tokenizer: DeltaTokenizer) -> None:
    # After "a" the delta would have said "ab" with 4 where it gave "a" 1: b is offered 3.
    source = FakeShift(lambda seen: (0, 1, 0, 4, 0) if seen[-1] == NEWLINE else (0, 0, 0, 0, 0))
    mine = Steering(source, tokenizer, MidToken(vocabulary(), vocabulary()))
    mine.begin(prompt(tokenizer, "b"))
    assert mine.forecasts[0].offers == []
    mine.push(b"a")
    assert [(offer.ids.tolist(), offer.values.tolist()) for offer in mine.forecasts[0].offers] == [
        ([B], [3.0])
    ]
    mine.push(b"\n")
    assert mine.forecasts[0].offers == []


def test_a_full_context_keeps_the_prompt_and_the_newest_half(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer, context=10)
    mine.begin(prompt(tokenizer, "b"))
    for data in b"aabaabaaab":
        mine.push(bytes([data]))
    assert source.streams[0][0] == B
    assert len(source.streams[0]) <= 10
    for _ in range(30):
        mine.push(b"a")
        assert len(source.streams[0]) <= 10
        assert consumed(mine) == tuple(source.streams[0])
        assert shift(mine)[0] == len(source.streams[0])


def test_after_an_error_everything_is_fed_anew(tokenizer: DeltaTokenizer) -> None:
    mine, source = steering(tokenizer)
    mine.begin(prompt(tokenizer, "b"))
    source.error = MemoryError("no room")
    with pytest.raises(MemoryError):
        mine.push(b"a")
    assert mine.stale
    source.error = None
    mine.begin(prompt(tokenizer, "b"))
    assert source.fed == [(B, NEWLINE), (B, NEWLINE)]
    assert not mine.stale


@given(
    turns=st.lists(st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n"]), max_size=8), max_size=4),
    mid_token=st.booleans(),
)
def test_rolled_back_equals_fresh(turns: list[list[bytes]], mid_token: bool) -> None:
    words = DeltaTokenizer(tokenizer_json())
    old, _ = steering(words, mid_token=mid_token)
    said: list[str] = ["b"]
    for pieces in turns:
        fresh, _ = steering(words, mid_token=mid_token)
        for mine in (old, fresh):
            mine.begin(prompt(words, *said))
            for data in pieces:
                mine.push(data)
        assert consumed(old) == consumed(fresh)
        depth = min(4, len(consumed(old)) - 1) if mid_token else 0
        for back in range(depth + 1):
            np.testing.assert_array_equal(row_before(old, back), row_before(fresh, back))
        said += [b"".join(pieces).decode() or "a", "ab"]


def test_common_prefix_counts_equal_tokens() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0
