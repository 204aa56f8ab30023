"""Base logits += alpha * mapped shift, in place, and what unmapped base tokens get; numpy alone.

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

from cmc_local.settings import Control
from cmc_local.text.token_map import TokenMap

Logits = NDArray[np.float32]
_SMALL = 60.0
"""Below this `exp` of a float32, and a sum of a million of them, is far from both its ends."""

_BLOCK = 1 << 16
"""Tokens that are worked on at once where a row is passed over several times."""


@dataclass(frozen=True, eq=False)
class Offer:
    """Shifts that some base tokens may take instead of their own one, if these are larger.

    A delta's logits are known up to a constant in each row, so what was said `steps` tokens ago
    counts from the fill as many times: for one step exactly, for more if the constants are alike.
    """

    ids: NDArray[np.intp]
    """(n,) intp, base tokens, each once"""
    values: NDArray[np.float32]
    """(n,) float32, shifts before alpha, less `steps` times the fill"""
    steps: int = 0
    """How many of the delta's tokens they replace."""


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
        self._shift = np.zeros(token_map.delta_size + 1, dtype=np.float32)
        """(V_delta + 1,): times alpha, and 0 for the unmapped"""
        self._scaled = np.empty(token_map.delta_size, dtype=np.float32)
        # A page of these takes memory when it is first written: some never are.
        self._row, self.total = np.empty((2, len(self._index)), dtype=np.float32)
        self._work = np.empty(min(len(self._index), _BLOCK), dtype=np.float32)
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
        return np.take(self._shift, self._index, out=self._row, mode="clip")

    def add(self, base: Logits, shift: Shift, out: Logits) -> None:
        """Add to `out` what one shift with offers or a fill adds to `base`.

        Both are (V_base,) float32. `out` may be `base` itself; else that is lent, and given back
        as the model left it.

            map (0, 1, none, none), shift (ln 3, 0), an offer of 1 for token 2, one step back
            fill = ln(3 + 1) - ln(1 + 1) = ln 2, of the tokens 0 and 1
            token 0 gets ln 3, 1 gets 0, 2 gets 1 + ln 2; 3 gets ln 2

        To sum over the tokens that are mapped and offered nothing, the others are set to -inf for
        the while.
        """
        row, offers = self.gathered([shift]), shift.offers
        if not self.fills and not offers:
            out += row
            return
        own = [base[one.ids] for one in offers]
        before = own if out is base else [out[one.ids] for one in offers]
        np.take(base, self._lone, out=self._kept, mode="clip")
        base[self._lone] = -np.inf
        for one in offers:
            base[one.ids] = -np.inf
        fill = self._add_mapped(base, row, out)
        base[self._lone] = self._kept
        for one, kept in zip(offers, own, strict=True):
            base[one.ids] = kept
        if out is not base:
            np.take(out, self._lone, out=self._kept, mode="clip")
        lone = fill if self.fills else 0.0
        np.add(self._kept, np.float32(lone), out=self._kept)
        out[self._lone] = self._kept
        if offers:
            row[self._lone] = lone
            _apply_offers(row, shift, fill)
            for one, kept in zip(offers, before, strict=True):
                out[one.ids] = kept + row[one.ids]

    def row(
        self, base: Logits, shift: Logits, alpha: float, offers: Sequence[Offer] = ()
    ) -> Logits:
        """What `add_shifts` adds for one adapter alone, (V_base,) float32, in a buffer."""
        one = Shift(self, shift, alpha, offers)
        self.total.fill(0.0)
        if alpha != 0 and not stands_alone(one):
            return self.gathered([one])
        if alpha != 0:
            self.add(base.copy(), one, self.total)
        return self.total

    def _add_mapped(self, base: Logits, row: Logits, out: Logits) -> float:
        """Add `row` to `out`; what leaves the unmapped tokens' total probability as it is.

        `base` is -inf at the tokens that are unmapped still. Block by block, so that what one
        pass has read is in the processor's cache for the next.
        """
        before = after = -math.inf
        for start in range(0, len(row), _BLOCK):
            block = slice(start, start + _BLOCK)
            added, work = row[block], self._work[: len(row) - start]
            before = _logaddexp(before, _logsumexp(base[block], work))
            np.add(base[block], added, out=work)
            after = _logaddexp(after, _logsumexp(work, work))
            out[block] += added
        fill = after - before
        return fill if math.isfinite(fill) else 0.0


def _apply_offers(row: Logits, shift: Shift, fill: float) -> None:
    """Put each offer into `row`, a shift after alpha, where it is larger than what stands there."""
    larger = np.maximum if shift.alpha > 0 else np.minimum
    for one in shift.offers:
        offered = one.values * np.float32(shift.alpha) + np.float32(one.steps * fill)
        row[one.ids] = larger(row[one.ids], offered)


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
    if len(alone) == 1:  # first, while the row is still the base's
        alone[0].mapped.add(base, alone[0], base)
    elif alone:
        total = alone[0].mapped.total
        total[:] = base
        for shift in alone:
            shift.mapped.add(base, shift, total)
        base[:] = total
    for group in alike.values():
        base += group[0].mapped.gathered(group)


def stands_alone(shift: Shift) -> bool:
    """Whether a shift cannot be summed with others before it is mapped."""
    return shift.mapped.fills or len(shift.offers) > 0


def _logsumexp(row: Logits, out: Logits) -> float:
    """log(sum(exp(row))); `out` is overwritten, and may be `row`."""
    top = float(np.maximum.reduce(row))
    if not math.isfinite(top):
        return top
    if abs(top) < _SMALL:  # as nearly always: no subtraction, which would be one pass more
        top = 0.0
        np.exp(row, out=out)
    else:
        np.subtract(row, np.float32(top), out=out)
        np.exp(out, out=out)
    return top + math.log(float(np.add.reduce(out)))  # in pairs: as good as float64 here


def _logaddexp(one: float, other: float) -> float:
    """log(exp(one) + exp(other)), of Python's own floats: infinities are no warning."""
    top = max(one, other)
    if not math.isfinite(top):
        return one + other if math.isnan(one + other) else top
    return top + math.log(math.exp(one - top) + math.exp(other - top))
