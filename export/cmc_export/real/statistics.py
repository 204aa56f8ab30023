"""Confidence intervals by drawing the measured examples again and again (bootstrap).

A figure may be a mean over several groups of examples, as `forget` has facts to miss and facts to
keep: each group is drawn for itself, and every group counts alike. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 4000
LEVEL: Final = 0.95
Groups = Sequence[Sequence[float]]
"""One number an example, for each group."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and the interval in which LEVEL of the redrawn means lie."""

    mean: float
    low: float
    high: float


def interval(groups: Groups, *, seed: int = 0) -> Interval:
    """The mean of the groups' means and its percentile interval.

    >>> interval([[1.0, 1.0, 1.0]])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    drawn = np.mean([_redrawn(np.asarray(one, float), seed + i) for i, one in enumerate(groups)], 0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    mean = float(np.mean([np.mean(one) for one in groups]))
    return Interval(mean, float(low), float(high))


def difference(groups: Groups, others: Groups, *, seed: int = 0) -> Interval:
    """Of the first less the second, example by example: both were measured on the same ones."""
    pairs = zip(groups, others, strict=True)
    return interval(
        [[a - b for a, b in zip(one, other, strict=True)] for one, other in pairs], seed=seed
    )


def mean_over_seeds(found: Sequence[Groups]) -> list[list[float]]:
    """Each example's mean over the seeds, group by group."""
    return [
        [float(value) for value in np.mean(np.asarray(group, float), axis=0)]
        for group in zip(*found, strict=True)
    ]


def _redrawn(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(DRAWS,) means of samples of the same size, drawn with replacement."""
    rng = np.random.default_rng(seed)
    found: NDArray[np.float64] = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(
        axis=1
    )
    return found
