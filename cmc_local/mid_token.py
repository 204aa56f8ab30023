"""Mid-token shifts: what a base token inside one of the delta's tokens should get.

Where the base's tokens are finer than the delta's, a response often ends inside what the delta says
as one token. Let `u` be the text of the delta's last `k` tokens (k = 1..4, within one word) and `s`
its logits before them. A delta token `d` that begins with `u` and is longer offers the base tokens
that equal its remainder, or begin it, the shift `s[d]` less the logits that the k tokens got on
their way. `MappedShift.row` takes the larger of this and the token's own shift.

    response "... Mar"; the delta's last token is `Mar`, its logits before: Mar 1, Maria 4, Mark 2
    "ia", "i"   are offered 4 - 1 = 3, for Maria
    "k"         is offered 2 - 1 = 1, for Mark

A delta that was trained on `Maria` as one token says it one position earlier, and nothing there.
Knows two vocabularies; nothing of the base model.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmc_local.control import Logits, Offer
from cmc_local.vocabulary import Role, Vocabulary

REACH: Final = 4
"""How many of the delta's last tokens are looked back on."""
_CACHE: Final = 512
"""Beginnings `u` whose continuations are remembered; a short one has some 10,000."""


@dataclass(frozen=True, eq=False)
class _Joins:
    """What may follow one beginning `u`: n pairs of a delta token and a base token on its way."""

    delta_ids: NDArray[np.intp]
    """(n,) intp, those of the same base token side by side"""
    starts: NDArray[np.intp]
    """(m,) intp, where each base token's part of `delta_ids` begins"""
    base_ids: NDArray[np.intp]
    """(m,) intp, each base token once"""

    def offer(self, row: Logits, spent: float) -> Offer:
        """The best shift for each base token; `row` is (V_delta,) float32."""
        best = np.maximum.reduceat(row[self.delta_ids], self.starts)
        best -= np.float32(spent)
        return Offer(self.base_ids, best)


class MidToken:
    """Finds the offers of one delta vocabulary to one base vocabulary."""

    def __init__(self, base: Vocabulary, delta: Vocabulary) -> None:
        self._delta = delta
        normal = ((text, i) for i, text in enumerate(delta.tokens) if delta.roles[i] == Role.NORMAL)
        ordered = sorted(pair for pair in normal if len(pair[0]) > 1)
        self._texts = [text for text, _ in ordered]
        self._ids = [i for _, i in ordered]
        self._base_ids = _ids_by_text(base)
        self._joins: Callable[[bytes], _Joins | None] = lru_cache(_CACHE)(self._find)

    def offers(
        self,
        tokens: Sequence[int],
        row_before: Callable[[int], Logits],
        *,
        held: bytes = b"",
    ) -> list[Offer]:
        """What the delta's last tokens offer, an `Offer` for each `k` that has any.

        `tokens` are the last ones of its stream, oldest first, at most REACH of which count;
        `row_before(k)` is its (V_delta,) float32 logits before the last k, for k up to their
        number, 0 included. `held` are bytes that follow them and are no whole character yet.
        """
        found: list[Offer] = []
        begun, spent = held, 0.0
        for back in range(min(len(tokens), REACH) + 1):
            if back:
                token = tokens[-back]
                begun = self._delta.tokens[token] + begun
                spent += float(row_before(back)[token])
                if not self._delta.tokens[token] or b" " in begun[1:] or b"\n" in begun[1:]:
                    break
            joins = self._joins(begun) if begun else None
            if joins is not None:
                found.append(joins.offer(row_before(back), spent))
        return found

    def _find(self, begun: bytes) -> _Joins | None:
        """All pairs for one beginning, by base token; None where there is none."""
        pairs: list[tuple[int, int]] = []
        for place in range(bisect_right(self._texts, begun), self._end(begun)):
            remainder, delta_id = self._texts[place][len(begun) :], self._ids[place]
            for end in range(1, len(remainder) + 1):
                pairs += [(i, delta_id) for i in self._base_ids.get(remainder[:end], ())]
        if not pairs:
            return None
        base_ids, delta_ids = np.array(sorted(pairs), dtype=np.intp).T
        starts = np.flatnonzero(np.diff(base_ids, prepend=-1))
        return _Joins(np.ascontiguousarray(delta_ids), starts, base_ids[starts])

    def _end(self, begun: bytes) -> int:
        """Where the sorted texts that begin with `begun` end."""
        stem = begun.rstrip(b"\xff")
        if not stem:
            return len(self._texts)
        return bisect_left(self._texts, stem[:-1] + bytes([stem[-1] + 1]))


def _ids_by_text(base: Vocabulary) -> dict[bytes, tuple[int, ...]]:
    """Base tokens by text; a byte token only where no normal token has its text."""
    found: dict[bytes, tuple[int, ...]] = {}
    for role in (Role.NORMAL, Role.BYTE):
        taken = set(found) if role == Role.BYTE else set()
        for i in np.flatnonzero(base.roles == role).tolist():
            text = base.tokens[i]
            if text and text not in taken:
                found[text] = (*found.get(text, ()), i)
    return found
