"""Guesses from what came before, and how many of them are worth a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.engine.prompt_lookup import ALWAYS, FREE, LONGEST, NEVER, PromptLookup, RowCosts

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def test_what_followed_before_is_guessed() -> None:
    lookup = PromptLookup([7, 8, 9, 5, 7, 8])
    assert lookup.guess(3) == [9, 5, 7]
    assert lookup.guess(1) == [9]


def test_the_longest_match_wins_then_the_latest() -> None:
    # "8" was followed by 2 last, but "7 8" by 1
    assert PromptLookup([7, 8, 1, 3, 8, 2, 7, 8]).guess(1) == [1]
    assert PromptLookup([8, 1, 8, 2, 8]).guess(1) == [2]


def test_nothing_is_guessed_where_nothing_matches() -> None:
    assert PromptLookup([1, 2, 3]).guess(4) == []
    assert PromptLookup().guess(4) == []


def test_the_reply_counts_too() -> None:
    lookup = PromptLookup([1])
    lookup.extend([2, 3])
    lookup.extend([1])
    assert lookup.guess(2) == [2, 3]


@given(tokens=TOKENS, most=st.integers(1, 5))
def test_guesses_equal_a_search_from_the_end(tokens: list[int], most: int) -> None:
    def slow() -> list[int]:
        for length in range(min(LONGEST, len(tokens)), 0, -1):
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == tokens[len(tokens) - length :]:
                    return tokens[start + length : start + length + most]
        return []

    lookup = PromptLookup(tokens[: len(tokens) // 2])
    lookup.extend(tokens[len(tokens) // 2 :])
    assert lookup.guess(most) == slow()


def test_the_rate_follows_the_reply_whether_guessed_or_not() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1])
    before = lookup.rate
    lookup.extend([2])  # as before: what follows one matching token is likelier now
    lookup.extend([9, 1])  # two matched, and another came
    assert lookup.rate > before
    assert lookup.rate == pytest.approx(before + 0.3 * (1 - before))


def test_a_rate_is_that_of_its_length_of_match() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 3])
    of_three = lookup.rate
    lookup.extend([9])
    better = of_three + 0.3 * (1 - of_three)
    assert lookup.rate != better  # four tokens match now
    lookup.extend([5, 1, 2, 3])
    assert lookup.rate == pytest.approx(better)


def test_the_prompts_own_repetitions_teach_nothing() -> None:
    assert PromptLookup([1, 2] * 20 + [5, 1]).rate == PromptLookup([1, 2, 5, 1]).rate


def test_a_text_without_repetitions_is_not_guessed_at() -> None:
    costs = RowCosts({1: 20.0, 4: 50.0, 8: 100.0})
    lookup, guessed = PromptLookup([1, 2, 3]), 0
    for number in range(40):
        lookup.extend([1])  # another token follows each time
        assert lookup.guess(1)
        guessed += costs.guesses(lookup.rate, len(lookup.guess(7)))
        lookup.extend([1000 + number])
    assert guessed == 0


def test_costs_between_two_measured_numbers_lie_on_a_line() -> None:
    costs = RowCosts({1: 60.0, 4: 54.0, 8: 94.0})
    assert [costs.cost(rows) for rows in (1, 2, 4, 6, 8, 16)] == [60, 58, 54, 74, 94, 188]


def test_rows_are_filled_up_where_more_cost_less() -> None:
    costs = RowCosts({1: 60.0, 4: 54.0, 8: 94.0})
    assert [costs.fill_up(rows) for rows in (1, 2, 4, 5)] == [4, 4, 4, 5]
    assert RowCosts({1: 60.0, 4: 61.0}).fill_up(1) == 1


@pytest.mark.parametrize(
    ("rate", "guesses"),
    [
        # tokens a run over its cost: 1/10, (1 + r)/12, (1 + r + r^2)/14, (1 + r + r^2 + r^3)/16
        (0.1, 0),  # 0.1, 0.092
        (0.3, 1),  # 0.1, 0.108, 0.099
        (0.9, 3),  # 0.1, 0.158, 0.194, 0.215
    ],
)
def test_so_many_guesses_as_give_most_tokens_per_second(rate: float, guesses: int) -> None:
    assert RowCosts({1: 10.0, 4: 16.0}).guesses(rate, 3) == guesses


def test_a_delta_beside_the_base_counts() -> None:
    costs = RowCosts({1: 10.0, 4: 10.0})
    assert costs.guesses(0.3, 1) == 1
    assert costs.guesses(0.3, 1, [RowCosts({1: 1.0, 2: 9.0})]) == 0  # 1.3/19 < 1/11


def test_the_three_named_costs() -> None:
    assert NEVER.guesses(0.99, 7) == 0
    assert ALWAYS.guesses(0.01, 7) == 7
    assert ALWAYS.guesses(0.5, 7, [FREE]) == 7
    assert NEVER.fill_up(1) == ALWAYS.fill_up(1) == 1


def test_each_row_costs_more_the_more_comes_before_it() -> None:
    costs = RowCosts({1: 60.0, 4: 54.0}, 0.01)
    assert [costs.cost(rows, 100) for rows in (1, 4)] == [61, 58]
    assert [costs.cost(rows, 1000) for rows in (1, 4)] == [70, 94]
    assert [costs.fill_up(1, depth) for depth in (0, 1000)] == [4, 1]
    assert RowCosts({1: 60.0}, None).cost(1, 1000) == 60


def test_fewer_guesses_are_worth_their_rows_behind_a_long_prompt() -> None:
    costs = RowCosts({1: 20.0, 4: 40.0, 8: 80.0}, 0.02)  # behind 1,000 tokens: 40, 120, 240
    assert costs.guesses(0.6, 7, depth=0) == 1  # 1.6 tokens for 1.33 times the cost of one
    assert costs.guesses(0.6, 7, depth=1000) == 0  # for 1.67 times


def test_a_guess_that_a_delta_follows_costs_its_handling() -> None:
    fast = RowCosts({1: 1e-4, 8: 1.1e-4})  # a model of a tenth of a millisecond a token
    assert fast.guesses(0.8, 7) == 7
    assert fast.guesses(0.8, 7, [FREE]) == 0  # each guess would take two tenths
    slow = RowCosts({1: 0.06, 8: 0.07})
    assert slow.guesses(0.8, 7, [FREE]) == 7
