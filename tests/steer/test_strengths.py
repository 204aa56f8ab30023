"""Names and strengths of adapters: what acts how strongly, and what is refused."""

from __future__ import annotations

import math

import pytest

from cmc_local.errors import UsageError
from cmc_local.steer.strengths import Alphas, check_alpha, free_name, strengths

OWN = {"one": 1.0, "two": 0.5}


@pytest.mark.parametrize(
    ("alphas", "exact", "expected"),
    [
        (None, False, (1.0, 0.5)),
        (None, True, (1.0, 0.5)),
        (0.0, False, (0.0, 0.0)),
        ({"two": -2.0}, False, (1.0, -2.0)),
        ({"two": -2.0}, True, (0.0, -2.0)),
        ({}, True, (0.0, 0.0)),
    ],
)
def test_what_is_asked_for_counts_over_the_own_strength(
    alphas: Alphas | None, exact: bool, expected: tuple[float, float]
) -> None:
    assert tuple(strengths(OWN, alphas, exact=exact).values()) == expected
    assert OWN == {"one": 1.0, "two": 0.5}


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="no adapter 'gone' is loaded: there are one, two"):
        strengths(OWN, {"gone": 1.0})


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_a_strength_is_a_finite_number(alpha: float) -> None:
    with pytest.raises(UsageError, match="finite number"):
        check_alpha(alpha)
    with pytest.raises(UsageError, match="the alpha of two"):
        strengths(OWN, {"two": alpha})
    assert check_alpha(-0.5) == -0.5


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert [free_name("one", taken) for taken in ((), OWN, ("one", "one-2"))] == [
        *("one", "one-2", "one-3")
    ]
