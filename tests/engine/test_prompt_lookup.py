"""Drafts from what came before, made where they are likely to be right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cmc_local.engine.prompt_lookup import LONGEST, PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def any_match(tokens: list[int], drafts: int = 9) -> PromptLookup:
    """One that drafts wherever something matches."""
    return PromptLookup(tokens, drafts=drafts, worth=0.0)


def test_what_followed_before_is_drafted() -> None:
    assert any_match([7, 8, 9, 5, 7, 8]).draft(3) == [9, 5, 7]
    assert any_match([7, 8, 9, 5, 7, 8]).draft(1) == [9]
    assert any_match([7, 8, 9, 5, 7, 8], drafts=2).draft(3) == [9, 5]
    assert any_match([7, 8, 9, 5, 7, 8]).draft(-1) == []


def test_the_longest_match_wins_then_the_latest() -> None:
    # "8" was followed by 2 last, but "7 8" by 1
    assert any_match([7, 8, 1, 3, 8, 2, 7, 8]).draft(1) == [1]
    assert any_match([8, 1, 8, 2, 8]).draft(1) == [2]


def test_nothing_is_drafted_where_nothing_matches() -> None:
    assert any_match([1, 2, 3]).draft(4) == []
    assert any_match([]).draft(4) == []


def test_the_reply_counts_too() -> None:
    lookup = any_match([1])
    lookup.extend([2, 3])
    lookup.extend([1])
    assert lookup.draft(2) == [2, 3]


@given(tokens=TOKENS, most=st.integers(1, 5))
def test_drafts_equal_a_search_from_the_end(tokens: list[int], most: int) -> None:
    def slow() -> list[int]:
        for length in range(min(LONGEST, len(tokens)), 0, -1):
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == tokens[len(tokens) - length :]:
                    return tokens[start + length : start + length + most]
        return []

    lookup = any_match(tokens[: len(tokens) // 2])
    lookup.extend(tokens[len(tokens) // 2 :])
    assert lookup.draft(most) == slow()


def test_a_text_without_repetitions_is_left_alone() -> None:
    lookup = PromptLookup([1, 2, 3])
    for number in range(40):
        lookup.extend([1])  # another token follows each time
        assert lookup.draft(4) == []
        lookup.extend([1000 + number])


def test_what_turns_out_right_is_drafted_again_and_what_does_not_is_not() -> None:
    lookup = PromptLookup([1, 2, 3])
    for _ in range(3):  # a match of one token is right three times: 0.1, 0.37, 0.56 and 0.69
        lookup.extend([1])
        lookup.extend([2, 50, 51, 52])
    lookup.extend([1])
    assert lookup.draft(1) == [2]
    for number in range(3):
        lookup.extend([60 + number, 1])
    assert lookup.draft(1) == []


def test_the_prompts_own_repetitions_teach_nothing() -> None:
    assert PromptLookup([1, 2] * 20 + [5, 1]).draft(4) == PromptLookup([1, 2, 5, 1]).draft(4)
