"""Arms measured in turn within one run, and what may be said of them: medians and paired ratios.

A machine's speed drifts (clocks, neighbours), so arms are interleaved and compared round by round:

    warm-up   A B C          thrown away
    round 0   A B C
    round 1   C B A          the order turns: no arm always follows the same one
    ...

    seconds for 10 tokens    A 1.0, 1.2, 2.0    B 2.0, 3.0, 3.0
    speed of A over B        3 ratios: 2, 2.5, 1.5; their median is 2

Knows numbers and arms, no model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmc_local.bench.arms import Arm, Place, Sample
from cmc_local.errors import UsageError

Turn = Callable[[Place, int], None]
"""Told which arm is about to run in which round, -1 for the warm-up."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What a measurement says: its median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Between the quartiles: where the middle half of the rounds lies."""
        return self.high - self.low


def measure(
    arms: Sequence[Arm], rounds: int, turn: Turn = lambda _place, _round: None
) -> dict[Place, list[Sample]]:
    """Every arm's sample of each round, the warm-up left out."""
    places = [arm.place for arm in arms]
    if len(set(places)) < len(places):
        raise ValueError(f"two arms have one place: {', '.join(map(str, places))}")
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, not {rounds}")
    samples: dict[Place, list[Sample]] = {place: [] for place in places}
    for number in range(-1, rounds):
        for arm in arms if number % 2 == 0 or number < 0 else reversed(arms):
            turn(arm.place, number)
            sample = arm.run()
            if number >= 0:
                samples[arm.place].append(sample)
    return samples


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of five values the third, the second and the fourth."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def milliseconds(samples: Sequence[Sample]) -> Spread:
    """Milliseconds a token."""
    return spread([1000 * one.seconds / one.tokens for one in samples])


def speed_ratios(one: Sequence[Sample], other: Sequence[Sample]) -> list[float]:
    """Tokens per second of `one` over those of `other`, round by round."""
    pairs = zip(one, other, strict=True)
    return [(a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in pairs]


def quotients(ratios: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios of ratios, round by round."""
    return [a / b for a, b in zip(ratios, others, strict=True)]


def geometric_means(columns: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several ratios in each round; of 1/2 and 2 it is 1."""
    return [statistics.geometric_mean(column) for column in zip(*columns, strict=True)]


def median_parts(samples: Sequence[Sample]) -> dict[str, float]:
    """Milliseconds a token of each part of a step, its median over the rounds."""
    names = dict.fromkeys(name for one in samples for name in one.parts)
    return {
        name: statistics.median(1000 * one.parts.get(name, 0.0) / one.tokens for one in samples)
        for name in names
    }
