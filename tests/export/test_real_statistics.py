"""Bootstrap intervals that can be checked by hand."""

from __future__ import annotations

import pytest

from cmc_export.real.statistics import difference, interval, mean_over_seeds


def test_equal_examples_leave_no_doubt() -> None:
    found = interval([[0.5] * 20])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_two_examples_can_be_drawn_as_either_twice() -> None:
    # (0, 0), (1, 1) with probability 1/4 each, so 2.5 % and 97.5 % are the extremes.
    found = interval([[0.0, 1.0]])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_the_interval_is_that_of_the_normal_law_for_many_examples() -> None:
    # 200 coins: standard error 0.5 / sqrt(200) = 0.0354, times 1.96 = 0.0693
    found = interval([[0.0, 1.0] * 100])
    assert found.high - 0.5 == pytest.approx(0.0693, abs=0.006)
    assert 0.5 - found.low == pytest.approx(0.0693, abs=0.006)


def test_groups_count_alike_whatever_their_size() -> None:
    assert interval([[1.0], [0.0, 0.0, 0.0]]).mean == 0.5


def test_a_difference_is_taken_example_by_example() -> None:
    # Both vary widely, their difference does not.
    found = difference([[0.1, 0.5, 0.9]], [[0.0, 0.4, 0.8]])
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_examples_of_different_counts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        difference([[0.1, 0.2]], [[0.1]])


def test_seeds_are_averaged_example_by_example() -> None:
    found = mean_over_seeds([[[0.0, 1.0], [1.0]], [[1.0, 1.0], [0.0]]])
    assert found == [[0.5, 1.0], [0.5]]
