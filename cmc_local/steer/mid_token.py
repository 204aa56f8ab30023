"""Mid-token shifts: what a base token inside one of the delta's tokens should get.

Where the base's tokens are finer than the delta's, a response often ends inside what the delta says
as one token. Let `u` be the text of the delta's last `k` tokens (k = 1..4, within one word) and `s`
its logits before them. A delta token `d` that begins with `u` and is longer offers the base tokens
that equal its remainder, or begin it, the shift `s[d]` less the logits that the k tokens got on
their way, plus k times the fill. `MappedShift` takes the larger of this and the token's own shift.

    response "... Mar"; the delta's last token is `Mar`, its logits before: Mar 1, Maria 4, Mark 2
    "ia", "i"   are offered 4 - 1 = 3, for Maria
    "k"         is offered 2 - 1 = 1, for Mark

A delta that was trained on `Maria` as one token says it one position earlier, and nothing there.
Why the fill: with p the base's probabilities before "Mar", the steered model gives "Maria" a share
of p(Mar) p(ia) e^{s[Maria]}, and "Mar" followed by another token v one of p(Mar) p(v) e^{s[Mar]}
e^{t[v]} / e^fill, t being the shift after "Mar" and e^fill its mean under p. Between the two stands
s[Maria] - s[Mar] + fill against t[v].
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

from cmc_local.steer.control import Logits, Offer
from cmc_local.text.vocabulary import Role, Vocabulary

REACH: Final = 4
"""How many of the delta's last tokens are looked back on."""
_CACHE: Final = 512
"""Beginnings `u` whose continuations are remembered; a lone space has some 50,000."""


@dataclass(frozen=True, eq=False)
class _Joins:
    """What may follow one beginning `u`: n pairs of a delta token and a base token on its way."""

    delta_ids: NDArray[np.intp]
    """(n,) intp, those of the same base token side by side"""
    starts: NDArray[np.intp]
    """(m,) intp, where each base token's part of `delta_ids` begins"""
    base_ids: NDArray[np.intp]
    """(m,) intp, each base token once"""

    def offer(self, row: Logits, spent: float, steps: int) -> Offer:
        """The best shift for each base token; `row` is (V_delta,) float32."""
        best = np.maximum.reduceat(row[self.delta_ids], self.starts)
        best -= np.float32(spent)
        return Offer(self.base_ids, best, steps)


class MidToken:
    """Finds the offers of one delta vocabulary to one base vocabulary."""

    def __init__(self, base: Vocabulary, delta: Vocabulary) -> None:
        self._delta = delta
        texts, normal = delta.tokens, np.flatnonzero(delta.roles == Role.NORMAL).tolist()
        ids = sorted((i for i in normal if len(texts[i]) > 1), key=texts.__getitem__)
        self._texts = [texts[i] for i in ids]
        self._ids = np.array(ids, np.intp)
        self._lengths = np.array([len(text) for text in self._texts], np.intp)
        self._shared = _shared_with_previous(self._texts, self._lengths)
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
                found.append(joins.offer(row_before(back), spent, back))
        return found

    def _find(self, begun: bytes) -> _Joins | None:
        """What may follow one beginning; None where there is nothing.

        The delta's texts are sorted, so those that begin alike stand side by side, and each longer
        beginning belongs to the first text that has it:

            begun "Mar"    texts Maria (7), Mariam (9), Mark (4), in brackets their ids
            shared         3, 5, 3 first bytes with the text before: so "Mari" and "Maria" are
                           Maria's, "Mariam" is Mariam's, "Mark" is Mark's
            remainders     i, ia, iam, k, of which the base has "i" and "k"
            joins          "i": 7 and 9, whose texts begin with "Mari"; "k": 4
        """
        first, last = bisect_right(self._texts, begun), self._end(begun)
        if first == last:
            return None
        lengths, shared = self._lengths[first:last], self._shared[first:last].copy()
        shared[0] = len(begun)
        # Each beginning of the texts once: of the first that has it, its first `end` bytes.
        places = np.repeat(np.arange(last - first), lengths - shared)
        ends = _ranges(shared, lengths) + 1
        texts, cut, ids_of = self._texts[first:last], len(begun), self._base_ids.get
        pairs = zip(places.tolist(), ends.tolist(), strict=True)
        found = [ids_of(texts[place][cut:end], ()) for place, end in pairs]
        hit = [at for at, ids in enumerate(found) for _ in ids]
        if not hit:
            return None
        starts, base_ids = places[hit], np.array([i for ids in found for i in ids], np.intp)
        stops = _stops(shared, starts, ends[hit])
        sizes = stops - starts
        delta_ids = self._ids[first:last][_ranges(starts, stops)]
        return _Joins(delta_ids, np.cumsum(sizes) - sizes, base_ids)

    def _end(self, begun: bytes) -> int:
        """Where the sorted texts that begin with `begun` end."""
        stem = begun.rstrip(b"\xff")
        if not stem:
            return len(self._texts)
        return bisect_left(self._texts, stem[:-1] + bytes([stem[-1] + 1]))


def _shared_with_previous(texts: Sequence[bytes], lengths: NDArray[np.intp]) -> NDArray[np.intp]:
    """(n,) intp: in how many first bytes each text equals the one before it."""
    data = np.frombuffer(b"".join(texts), np.uint8)
    begins = np.cumsum(lengths) - lengths
    shared = np.zeros(len(texts), np.intp)
    alike = np.arange(1, len(texts))
    while len(alike):
        depth = shared[alike[0]]  # the same for all that are left
        longer = np.minimum(lengths[alike], lengths[alike - 1]) > depth
        alike = alike[longer]
        alike = alike[data[begins[alike] + depth] == data[begins[alike - 1] + depth]]
        shared[alike] += 1
    return shared


def _ranges(starts: NDArray[np.intp], stops: NDArray[np.intp]) -> NDArray[np.intp]:
    """All numbers from each start to before its stop: (0, 5), (2, 8) are 0 1 5 6 7."""
    sizes = stops - starts
    found: NDArray[np.intp] = np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    found += np.arange(len(found))
    return found


def _stops(
    shared: NDArray[np.intp], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> NDArray[np.intp]:
    """(m,) intp: up to where the texts from each start on equal it in their first `ends` bytes."""
    stops = np.empty_like(starts)
    for end in np.unique(ends):
        same = ends == end
        breaks = np.append(np.flatnonzero(shared < end), len(shared))
        stops[same] = breaks[np.searchsorted(breaks, starts[same], side="right")]
    return stops


def _ids_by_text(base: Vocabulary) -> dict[bytes, tuple[int, ...]]:
    """Base tokens by text; a byte token only where no normal token has its text."""
    found: dict[bytes, tuple[int, ...]] = {}
    for role in (Role.BYTE, Role.NORMAL):
        ids = [i for i in np.flatnonzero(base.roles == role).tolist() if base.tokens[i]]
        alike: dict[bytes, tuple[int, ...]] = {base.tokens[i]: (i,) for i in ids}
        if len(alike) < len(ids):
            alike = dict.fromkeys(alike, ())
            for i in ids:
                alike[base.tokens[i]] += (i,)
        found |= alike
    return found
