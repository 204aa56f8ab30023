"""Base logits += alpha * mapped shift, in place; numpy alone.

    logits_v += alpha * shift[map v]                                   for mapped base tokens
    logits_v += fill                                                   for the others
    fill = logsumexp_mapped(base + alpha * shift) - logsumexp_mapped(base)

The fill keeps the total probability of the unmapped tokens as the base had it, so a constant in
the delta's logits, which its training leaves free, changes nothing. `unmapped="zero"` adds 0 to
them, as the published code does. With several adapters each fill is computed against the base
alone, then the shifts are summed.

    map (0, 1, none), base (0, 0, 0), shift (ln 3, 0), alpha 1:  fill = ln(3 + 1) - ln(1 + 1) = ln 2
    probabilities go from 1/3, 1/3, 1/3 to 3/6, 1/6, 2/6

What a step costs is passes over the base's vocabulary, so all buffers are made beforehand, alpha
goes into the delta's shorter row, and adapters that share a map go through one gather. Knows no
text and no model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.settings import Control
from cmc_local.token_map import TokenMap

Logits = NDArray[np.float32]
_SMALL = 60.0
"""Below this `exp` of a float32, and a sum of a million of them, is far from both its ends."""


@dataclass(frozen=True, eq=False)
class Offer:
    """Shifts that some base tokens may take instead of their mapped one, if these are larger."""

    ids: NDArray[np.intp]
    """(n,) intp, base tokens, each once"""
    values: NDArray[np.float32]
    """(n,) float32, shifts before alpha"""


@dataclass(frozen=True, eq=False, slots=True)
class Shift:
    """What one adapter adds to one row of the base's logits."""

    mapped: MappedShift
    row: Logits
    """(V_delta,) float32, the delta's logits"""
    alpha: float
    offers: Sequence[Offer] = ()


class MappedShift:
    """Carries the shifts of one delta over to one base vocabulary.

    Its buffers are used within one call of `add_shifts`: it serves any number of adapters and
    sequences, of one thread.
    """

    def __init__(self, token_map: TokenMap, control: Control) -> None:
        """`control` says what unmapped tokens get; all buffers are made here."""
        self._index = token_map.index()
        self._lone = np.flatnonzero(token_map.ids < 0)
        self.fills = control.unmapped == "neutral" and len(self._lone) > 0
        """Whether unmapped tokens get a fill, which is computed against the base alone."""
        kind = f"{control.unmapped} {token_map.delta_size} "
        self.key = hashlib.sha256(kind.encode() + self._index.tobytes()).digest()
        """The same for two that do the same."""
        self._shift = np.empty(token_map.delta_size + 1, dtype=np.float32)
        self._scaled = np.empty(token_map.delta_size, dtype=np.float32)
        # A page of these takes memory when it is first written: without a fill some never do.
        self._row, self.total, self._work = np.empty((3, len(self._index)), dtype=np.float32)
        self._kept = np.empty(len(self._lone), dtype=np.float32)

    def shares(self, other: MappedShift) -> bool:
        """Whether both have the same map and control, so that one gather serves both."""
        return self.key == other.key

    def gathered(self, shifts: Sequence[Shift]) -> Logits:
        """The sum of shifts of this map without offers or fill, (V_base,) float32, in a buffer."""
        first, *others = shifts
        np.multiply(first.row, np.float32(first.alpha), out=self._shift[:-1])
        for shift in others:
            np.multiply(shift.row, np.float32(shift.alpha), out=self._scaled)
            self._shift[:-1] += self._scaled
        self._shift[-1] = 0.0
        return np.take(self._shift, self._index, out=self._row, mode="clip")

    def filled(
        self, base: Logits, shift: Shift, before: float, out: Logits | None = None
    ) -> Logits:
        """What one shift with offers or a fill adds, (V_base,) float32, in `out` or a buffer.

        `base` is as the model left it, and `before` its `mass` over the mapped tokens.
        """
        row = self._row if out is None else out
        np.multiply(shift.row, np.float32(shift.alpha), out=self._shift[:-1])
        self._shift[-1] = -np.inf  # marks the unmapped
        np.take(self._shift, self._index, out=row, mode="clip")
        joined = self._take_offers(row, shift)
        if len(self._lone) > len(joined):
            fill = self._fill(base, row, joined, before) if self.fills else 0.0
            own = row[joined]
            row[self._lone] = fill
            row[joined] = own
        return row

    def row(
        self, base: Logits, shift: Logits, alpha: float, offers: Sequence[Offer] = ()
    ) -> Logits:
        """What `add_shifts` adds for one adapter alone, (V_base,) float32, in a buffer."""
        one = Shift(self, shift, alpha, offers)
        if alpha == 0:
            self._row.fill(0.0)
            return self._row
        if not stands_alone(one):
            return self.gathered([one])
        return self.filled(base, one, self.mass(base.copy()))

    def mass(self, base: Logits) -> float:
        """log(sum(exp(base))) over the mapped tokens; `base` is lent, and given back as it was."""
        np.take(base, self._lone, out=self._kept, mode="clip")
        base[self._lone] = -np.inf
        found = _logsumexp(base, self._work)
        base[self._lone] = self._kept
        return found

    def _take_offers(self, row: Logits, shift: Shift) -> NDArray[np.intp]:
        """The larger shift counts (before alpha, which may be negative).

        Returns the unmapped tokens, each once, that have become mapped by an offer.
        """
        joined = []
        for offer in shift.offers:
            own, offered = row[offer.ids], offer.values * np.float32(shift.alpha)
            lone = np.isneginf(own)
            larger = np.maximum if shift.alpha > 0 else np.minimum
            row[offer.ids] = np.where(lone, offered, larger(own, offered))
            joined.append(offer.ids[lone])
        return np.concatenate(joined) if joined else self._lone[:0]

    def _fill(self, base: Logits, row: Logits, joined: NDArray[np.intp], before: float) -> float:
        """What leaves the total probability of the tokens that are unmapped still as it is."""
        np.add(base, row, out=self._work)  # -inf where unmapped
        after = _logsumexp(self._work, self._work)
        if len(joined):
            taken = base[joined]
            before = float(np.logaddexp(before, _logsumexp(taken, taken)))
        fill = after - before
        return fill if math.isfinite(fill) else 0.0


def add_shifts(base: Logits, shifts: Sequence[Shift]) -> None:
    """Add every shift, mapped, to the base's logits `(V_base,) float32`, in place.

    A shift of alpha 0 is as good as none: without another the row stays as it is, bit for bit.
    """
    alike: dict[bytes, list[Shift]] = {}
    alone: list[Shift] = []
    for shift in shifts:
        if shift.alpha != 0 and stands_alone(shift):
            alone.append(shift)
        elif shift.alpha != 0:
            alike.setdefault(shift.mapped.key, []).append(shift)
    if alone:  # first, while the row is still the base's
        base += _sum(base, alone)
    for group in alike.values():
        base += group[0].mapped.gathered(group)


def stands_alone(shift: Shift) -> bool:
    """Whether a shift cannot be summed with others before it is mapped."""
    return shift.mapped.fills or len(shift.offers) > 0


def _sum(base: Logits, shifts: Sequence[Shift]) -> Logits:
    """What shifts with offers or fills add together, each computed against the base alone."""
    masses: dict[bytes, float] = {}
    for shift in shifts:
        if shift.mapped.fills and shift.mapped.key not in masses:
            masses[shift.mapped.key] = shift.mapped.mass(base)
    first, *others = shifts
    total = first.mapped.total
    first.mapped.filled(base, first, masses.get(first.mapped.key, 0.0), out=total)
    for shift in others:
        total += shift.mapped.filled(base, shift, masses.get(shift.mapped.key, 0.0))
    return total


def check_alpha(alpha: float) -> float:
    """Any strength is allowed, below 0 too, as long as it is a finite number; else UsageError."""
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a number, not {alpha}: 0 is off, 1 is as trained")
    return alpha


def _logsumexp(row: Logits, out: Logits) -> float:
    """log(sum(exp(row))); `out` is overwritten, and may be `row`."""
    top = float(row.max(initial=-np.inf))
    if not math.isfinite(top):
        return top
    if abs(top) < _SMALL:  # as nearly always: no subtraction, which would be one pass more
        top = 0.0
        np.exp(row, out=out)
    else:
        np.subtract(row, np.float32(top), out=out)
        np.exp(out, out=out)
    return top + math.log(float(out.sum()))  # numpy sums in pairs: as good as float64 here
