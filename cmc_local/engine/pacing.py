"""Which of several ways to take a step is the fastest here: found by taking some of each.

Overlapping the delta with the base model pays where a core is free for it and costs where none is;
no rule knows that of a machine, its other programs included, so the first steps are timed.

    ways (a, b): steps a b a b ... nine of each, then the one of the smaller median, a unless b is
    clearly faster; now and then again some of each, since machines change their minds

All ways give the same numbers; what would change them, however little, is not chosen by a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from statistics import median
from typing import Generic, TypeVar

Way = TypeVar("Way", bound=Hashable)

TRIALS = 9
"""Steps of each way that are timed before one is settled on; the first of them is not counted."""
CLEARLY = 0.98
"""Another way must take at most this share of the first one's time: noise alone decides nothing."""
SETTLED_FOR = 512
"""Steps until the others are tried again."""


class Pace(Generic[Way]):
    """The choice among ways to take a step; `take` one, then say how long it took.

    The first way is the one to be expected the fastest.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self.ways = tuple(ways)
        self._times: dict[Way, deque[float]] = {way: deque(maxlen=TRIALS) for way in self.ways}
        self._settled: Way | None = self.ways[0] if len(self.ways) == 1 else None
        self._steps_left = SETTLED_FOR

    @property
    def settled(self) -> Way | None:
        """The way that was found the fastest; None while it is being found."""
        return self._settled

    def take(self) -> Way:
        """The way of the next step."""
        if self._settled is not None:
            return self._settled
        return min(self.ways, key=lambda way: len(self._times[way]))

    def took(self, way: Way, seconds: float) -> None:
        """A step of this way is done."""
        if len(self.ways) == 1:
            return
        if self._settled is not None:
            self._steps_left -= 1
            if not self._steps_left:
                self._settled, self._steps_left = None, SETTLED_FOR
                for times in self._times.values():
                    times.clear()
            return
        self._times[way].append(seconds)
        if all(len(times) == TRIALS for times in self._times.values()):
            first, best = self.ways[0], min(self.ways, key=self._typical)
            clear = self._typical(best) <= CLEARLY * self._typical(first)
            self._settled = best if clear else first

    def _typical(self, way: Way) -> float:
        return median(list(self._times[way])[1:])
