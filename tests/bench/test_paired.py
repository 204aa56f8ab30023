"""Rounds, medians and paired ratios, checked by hand on arms whose speed is made up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cmc_local.bench import paired
from cmc_local.bench.arms import Place, Sample
from cmc_local.bench.paired import Spread
from cmc_local.errors import UsageError


class Scripted:
    """An arm that takes given seconds for ten tokens, the warm-up's first, and keeps a log."""

    def __init__(self, name: str, seconds: Sequence[float], log: list[str] | None = None) -> None:
        self.place = Place("plain", name, 16)
        self._seconds: Iterator[float] = iter(seconds)
        self._log = [] if log is None else log

    def run(self) -> Sample:
        self._log.append(self.place.text)
        return Sample(next(self._seconds), 10, parts={"decode": 0.5})


def samples(*seconds: float, tokens: int = 10) -> list[Sample]:
    return [Sample(one, tokens) for one in seconds]


def test_arms_take_turns_and_every_other_round_runs_backwards() -> None:
    log: list[str] = []
    arms = [Scripted(name, [1.0] * 4, log) for name in "ABC"]
    turns: list[tuple[str, int]] = []
    paired.measure(arms, 3, lambda place, number: turns.append((place.text, number)))
    assert "".join(log) == "ABC" + "ABC" + "CBA" + "ABC"
    assert turns[:4] == [("A", -1), ("B", -1), ("C", -1), ("A", 0)]


def test_the_warm_up_is_thrown_away_and_rounds_stay_in_order() -> None:
    found = paired.measure([Scripted("A", [9, 1, 2, 3]), Scripted("B", [9, 4, 5, 6])], 3)
    assert [[one.seconds for one in arm] for arm in found.values()] == [[1, 2, 3], [4, 5, 6]]


def test_two_arms_of_one_place_and_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="one place"):
        paired.measure([Scripted("A", []), Scripted("A", [])], 1)
    with pytest.raises(UsageError, match="rounds"):
        paired.measure([Scripted("A", [])], 0)


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert paired.spread([5, 1, 4, 2, 3]) == Spread(3, 2, 4)
    assert paired.spread([5, 1, 4, 2, 3]).width == 2
    assert paired.spread([1, 2]) == Spread(1.5, 1.25, 1.75)
    assert paired.spread([7.0]) == Spread(7, 7, 7)


def test_an_outlier_moves_neither_the_median_nor_the_quartiles() -> None:
    assert paired.spread([1, 2, 3, 4, 1000]) == Spread(3, 2, 4)


def test_milliseconds_are_per_token() -> None:
    assert paired.milliseconds(samples(1, 2, 3)).median == pytest.approx(200)
    assert paired.milliseconds(samples(1, tokens=80)).median == pytest.approx(12.5)


def test_ratios_are_those_of_the_speeds_within_a_round() -> None:
    one, other = samples(1.0, 1.2, 2.0), samples(2.0, 3.0, 3.0)
    ratios = paired.speed_ratios(one, other)
    assert ratios == pytest.approx([2, 2.5, 1.5])
    assert paired.spread(ratios).median == pytest.approx(2)


def test_rounds_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError):
        paired.speed_ratios(samples(1, 2), samples(1))


def test_ratios_of_ratios_and_their_means() -> None:
    assert paired.quotients([1, 0.9], [0.5, 1]) == pytest.approx([2, 0.9])
    assert paired.geometric_means([[0.5, 4], [2, 1]]) == pytest.approx([1, 2])


def test_parts_are_medians_per_token() -> None:
    one = Sample(1.0, 10, parts={"decode": 0.5, "map": 0.1})
    two = Sample(3.0, 30, parts={"decode": 0.9})
    three = Sample(9.0, 10, parts={"decode": 8.0, "map": 0.4})
    assert paired.median_parts([one, two, three]) == pytest.approx({"decode": 50, "map": 10})
    assert paired.median_parts(samples(1)) == {}
