"""The ratios that a measurement is about, each round by round: tokens per second over the same.

    steered_vs_plain 0.97      steered text comes at 97 % of the plain speed
    long_vs_short 0.99         of that share, 99 % is left with the longest prompt

A ratio is there if both of its sides were measured. Knows samples, no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cmc_local.bench.arms import Kind, Place, Sample
from cmc_local.bench.paired import geometric_means, quotients, speed_ratios

Samples = Mapping[Place, Sequence[Sample]]

_MAIN: tuple[tuple[str, Kind, Kind], ...] = (
    ("steered_vs_plain", "steered", "plain"),
    ("serial_vs_plain", "serial", "plain"),
    ("overlapped_vs_plain", "overlapped", "plain"),
    ("steered_vs_naive", "steered", "naive"),
    ("plain_vs_stock", "alone", "stock"),
    ("naive_vs_stock", "naive", "stock"),
    ("speculated_plain_vs_stock", "plain+guesses", "stock"),
    ("speculated_other", "steered+guesses", "steered"),
    ("speculated_plain_other", "plain+guesses", "plain"),
)
"""Name, one side, the other; both on the main text after the main prompt."""


@dataclass(frozen=True, slots=True)
class Main:
    """What is compared where nothing else is said."""

    text: str
    context: int

    def place(self, kind: Kind) -> Place:
        return Place(kind, self.text, self.context)


def ratios(samples: Samples, main: Main) -> dict[str, list[float]]:
    """Every ratio that was measured, one number a round."""
    found = {}
    for name, one, other in _MAIN:
        if ratio := _ratio(samples, main.place(one), main.place(other)):
            found[name] = ratio
    found.update(_batched(samples, main))
    found.update(_repeating(samples, main))
    if ratio := _long_vs_short(samples, main):
        found["long_vs_short"] = ratio
    return found


def to_plain(samples: Samples, place: Place) -> list[float] | None:
    """An arm's speed over that of plain text in its own place; None for plain itself."""
    plain = replace(place, kind="plain")
    return _ratio(samples, place, plain) if place != plain else None


def _ratio(samples: Samples, one: Place, other: Place) -> list[float] | None:
    if one not in samples or other not in samples:
        return None
    return speed_ratios(samples[one], samples[other])


def _batched(samples: Samples, main: Main) -> Iterator[tuple[str, list[float]]]:
    """All tokens of several sequences, over one sequence and over the same ones plain."""
    for place in samples:
        if place.sequences == 1 or place.kind != "steered":
            continue
        if ratio := _ratio(samples, place, main.place("steered")):
            yield "batched_vs_one", ratio
        if ratio := to_plain(samples, place):
            yield "batched_steered_vs_plain", ratio


def _repeating(samples: Samples, main: Main) -> Iterator[tuple[str, list[float]]]:
    """Guesses on the texts that repeat their prompts, which are all but the main one."""
    sides: tuple[tuple[str, Kind, Kind], ...] = (
        ("speculated_repeating", "steered+guesses", "steered"),
        ("speculated_plain_repeating", "plain+guesses", "plain"),
    )
    for name, one, other in sides:
        columns = [
            ratio
            for place in samples
            if place.kind == one and place.text != main.text
            if (ratio := _ratio(samples, place, replace(place, kind=other)))
        ]
        if columns:
            yield name, geometric_means(columns)


def _long_vs_short(samples: Samples, main: Main) -> list[float] | None:
    ratios = {
        place.context: ratio
        for place in samples
        if place.kind == "steered" and place.text == main.text and place.sequences == 1
        if (ratio := to_plain(samples, place))
    }
    if len(ratios) < 2:
        return None
    return quotients(ratios[max(ratios)], ratios[min(ratios)])
