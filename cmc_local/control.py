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

A `MappedShift` belongs to one adapter on one sequence: its buffers are not shared. Knows no text
and no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.settings import Control
from cmc_local.token_map import TokenMap

Logits = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Offer:
    """Shifts that some base tokens may take instead of their mapped one, if these are larger."""

    ids: NDArray[np.intp]
    """(n,) intp, base tokens, each once"""
    values: NDArray[np.float32]
    """(n,) float32, shifts before alpha"""


class MappedShift:
    """Carries the shifts of one delta over to one base vocabulary."""

    def __init__(self, token_map: TokenMap, control: Control) -> None:
        """`control` says what unmapped tokens get; all buffers are made here."""
        self._index = token_map.index()
        self._lone = np.flatnonzero(token_map.ids < 0)
        self._neutral = control.unmapped == "neutral" and len(self._lone) > 0
        self._shift = np.empty(token_map.delta_size + 1, dtype=np.float32)
        self._row = np.empty(len(self._index), dtype=np.float32)
        self._work = np.empty(len(self._index) if self._neutral else 0, dtype=np.float32)

    def row(
        self, base: Logits, shift: Logits, alpha: float, offers: Sequence[Offer] = ()
    ) -> Logits:
        """What to add to the base's logits, (V_base,) float32, in a buffer that is used again.

        `base` (V_base,) float32 is read for the fill alone, so it must be as the model left it;
        `shift` is (V_delta,) float32. With alpha 0 every element is 0.
        """
        if alpha == 0:
            self._row.fill(0.0)
            return self._row
        np.multiply(shift, np.float32(alpha), out=self._shift[:-1])
        self._shift[-1] = -np.inf if self._neutral or offers else 0.0
        np.take(self._shift, self._index, out=self._row, mode="clip")
        for offer in offers:
            self._take_larger(offer, alpha)
        lone = self._lone
        if offers and len(lone):
            lone = lone[np.isneginf(self._row[lone])]
        if len(lone) and (self._neutral or offers):
            self._row[lone] = self._fill(base, lone) if self._neutral else 0.0
        return self._row

    def _take_larger(self, offer: Offer, alpha: float) -> None:
        """The larger shift counts (before alpha, which may be negative); -inf marks unmapped."""
        own, offered = self._row[offer.ids], offer.values * np.float32(alpha)
        if alpha > 0:
            np.maximum(own, offered, out=own)
        else:
            own = np.where(np.isneginf(own), offered, np.minimum(own, offered))
        self._row[offer.ids] = own

    def _fill(self, base: Logits, lone: NDArray[np.intp]) -> float:
        """What leaves the total probability of the unmapped tokens `lone` as it is."""
        np.add(base, self._row, out=self._work)  # -inf where unmapped
        after = _logsumexp(self._work)
        np.copyto(self._work, base)
        self._work[lone] = -np.inf
        fill = after - _logsumexp(self._work)
        return fill if math.isfinite(fill) else 0.0


def check_alpha(alpha: float) -> float:
    """Any strength is allowed, below 0 too, as long as it is a finite number; else UsageError."""
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a number, not {alpha}: 0 is off, 1 is as trained")
    return alpha


def _logsumexp(row: Logits) -> float:
    """log(sum(exp(row))) of a row that is overwritten; summed in float64."""
    top = float(row.max())
    if not math.isfinite(top):
        return top
    np.subtract(row, np.float32(top), out=row)
    np.exp(row, out=row)
    return top + math.log(float(row.sum(dtype=np.float64)))
