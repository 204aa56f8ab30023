"""Trials of what may be lost between vocabularies; none of them is in the runtime.

    ahead     a base token that the delta spells in several pieces takes their shifts together: the
              delta is asked for the later pieces of the base's likeliest TOP tokens
    digits    no shift, or half of it, for base tokens that are digits
    by class  the strength of the shift on how much mass a class of tokens has (words, insides,
              digits, marks, the end), and another strength on the choice within the class
    gates     a strength for each position, by how sure the base or the delta is

What a later piece says is its log-softmax, log p(piece | pieces before it): the delta's logits are
free up to a constant at each position, so they cannot be added up as they are. As they are always
below 0, each sum would take from every long token; `even` leaves the mass of the tokens that
share a first piece as it was, `less the mean` subtracts the mean of all that were asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmc_export.real.kinds import Ask, Ids, Kind, Place, Way, default, kind, logsumexp, maps, nats
from cmc_local.settings import Control
from cmc_local.steer.control import Logits, MappedShift, Offer, Shift, add_shifts
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.alignment import Aligner, DeltaPrompt, edit_between
from cmc_local.text.token_map import Match, TokenMap
from cmc_local.text.vocabulary import Role, Vocabulary

TOP: Final = 16
"""The base's likeliest tokens that the delta is asked for."""
WORDS, INSIDES, DIGITS, MARKS, END = range(5)
"""Classes of base tokens, whatever stands before them."""


def trial_ways(base: Vocabulary, loaded: LoadedAdapter) -> dict[str, Way]:
    """Every trial, by what it is called in the table."""
    classes = classes_of(base)
    return {
        **_ahead_ways(),
        **_digit_ways(base, loaded, classes),
        **_class_ways(base, loaded, classes),
        **_gate_ways(classes),
    }


# --- the delta asked ahead -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Asked:
    """What the delta says of base tokens that it spells in several pieces."""

    ids: Ids
    """(n,) base tokens"""
    firsts: Ids
    """(n,) the delta's first piece of each"""
    later: NDArray[np.float64]
    """(n,) the log-probability of the other pieces together, given the first"""


class Asker:
    """Follows an answer in a slot of its own and asks the delta what could come next."""

    def __init__(self, loaded: LoadedAdapter, base: Vocabulary, *, slot: int) -> None:
        self._tokenizer, self._source = loaded.tokenizer, loaded.source
        self._base, self._slot = base, slot
        self._consumed: list[int] = []

    def follow(self, prompt: DeltaPrompt, pieces: Sequence[bytes]) -> Iterator[Ask]:
        """For each position what asks there; to be called before the next one is taken."""
        aligner = Aligner(self._tokenizer, prompt)
        yield partial(self._ask, aligner)
        for piece in pieces:
            aligner.push(piece)
            yield partial(self._ask, aligner)

    def _ask(self, aligner: Aligner, logits: Logits) -> Asked:
        stream = list(aligner.tokens)
        found: list[tuple[int, int, float]] = []
        likely = np.argpartition(logits, -min(TOP, len(logits)))[-TOP:]
        for token in likely.tolist() if not aligner.held else ():
            pieces = self._pieces(aligner, stream, self._base.tokens[token])
            if len(pieces) > 1:
                found.append((token, pieces[0], self._later(stream, pieces)))
        ids, firsts, later = zip(*found, strict=True) if found else ((), (), ())
        return Asked(np.array(ids, np.intp), np.array(firsts, np.intp), np.array(later))

    def _pieces(self, aligner: Aligner, stream: list[int], text: bytes) -> list[int]:
        """What the delta would say for a text; nothing where that changes what stands before it."""
        if not text:
            return []
        aligner.push(text)
        longer, is_whole = list(aligner.tokens), not aligner.held
        aligner.rollback(len(text))
        begins = longer[: len(stream)] == stream
        return longer[len(stream) :] if begins and is_whole else []

    def _later(self, stream: list[int], pieces: list[int]) -> float:
        source, slot = self._source, self._slot
        edit = edit_between(self._consumed, stream)
        source.truncate(slot, edit.keep)
        if edit.feed:
            source.feed(slot, edit.feed)
        self._consumed = stream
        rows = source.feed(slot, pieces[:-1], rows=len(pieces) - 1)
        source.truncate(slot, len(stream))
        steps = zip(rows, pieces[1:], strict=True)
        return sum(float(row[piece]) - logsumexp(row) for row, piece in steps)


Change = Callable[[Place, Asked], NDArray[np.float64]]
"""What is added to the shifts of the asked tokens, (n,)."""


def even(place: Place, asked: Asked, strength: float = 1.0) -> NDArray[np.float64]:
    """The later pieces' shift, less what would change the mass of those with one first piece."""
    change = strength * asked.later
    for first in np.unique(asked.firsts):
        alike = asked.firsts == first
        row = place.row(1.0)[asked.ids[alike]].astype(np.float64)
        change[alike] -= logsumexp(row + change[alike]) - logsumexp(row)
    return change


def less_the_mean(place: Place, asked: Asked) -> NDArray[np.float64]:
    """The later pieces' shift less the mean of all that were asked."""
    return asked.later - asked.later.mean()


def first_piece(place: Place, asked: Asked) -> NDArray[np.float64]:
    """The shift of the first piece of the delta's own spelling in place of the nearest token's."""
    changed = place.logits[asked.ids] + place.shift.row[asked.firsts]
    return (changed - place.row(1.0)[asked.ids]).astype(np.float64)


def _ahead_ways() -> dict[str, Way]:
    changes: Mapping[str, Change] = {
        "ahead: sum": lambda place, asked: asked.later,
        "ahead: half the sum": lambda place, asked: asked.later / 2,
        "ahead: less the mean": less_the_mean,
        "ahead: even": even,
        "ahead: even, half": partial(even, strength=0.5),
        "ahead: even, a quarter": partial(even, strength=0.25),
        "first piece as the delta spells it": first_piece,
    }
    return {name: _ahead(change) for name, change in changes.items()}


def _ahead(change: Change) -> Way:
    def way(place: Place) -> float:
        ask = place.ask
        if ask is None:
            raise RuntimeError("nobody asks this delta ahead")
        asked: Asked = place.once("asked", lambda: ask(place.logits))
        added = change(place, asked) if len(asked.ids) else asked.later
        return changed_nats(place, asked.ids, added)

    return way


def changed_nats(place: Place, ids: Ids, change: NDArray[np.float64]) -> float:
    """What a place's token costs where a few logits of the default row are changed so much."""
    row = place.row(1.0)
    own = row[ids].astype(np.float64) - place.total(1.0)
    total = np.log1p((np.exp(own + change) - np.exp(own)).sum())
    targets = row[place.targets].astype(np.float64)
    for one, more in zip(ids.tolist(), change.tolist(), strict=True):
        targets[place.targets == one] += more
    return float(place.total(1.0) + total - logsumexp(targets))


# --- digits and classes --------------------------------------------------------------------------


def classes_of(base: Vocabulary) -> Ids:
    """(V_base,) intp: the class of every base token; control tokens are marks."""
    of_kind = {Kind.BEGINNING: WORDS, Kind.NAME: WORDS, Kind.INSIDE: INSIDES, Kind.DIGITS: DIGITS}
    found = np.full(len(base), MARKS, np.intp)
    for i, (text, role) in enumerate(zip(base.tokens, base.roles.tolist(), strict=True)):
        if role == Role.EOS:
            found[i] = END
        elif text:
            found[i] = of_kind.get(kind(text, "a"), MARKS)
    return found


def without(full: TokenMap, dropped: NDArray[np.bool_]) -> TokenMap:
    """The map with no counterpart for the base tokens in `dropped`, (V_base,)."""
    return TokenMap(
        np.where(dropped, -1, full.ids).astype(np.int32),
        np.where(dropped, Match.NONE, full.matches).astype(np.uint8),
        full.delta_size,
    )


def _digit_ways(base: Vocabulary, loaded: LoadedAdapter, classes: Ids) -> dict[str, Way]:
    digits = classes == DIGITS
    mapped = MappedShift(without(maps(base, loaded)[0], digits), Control())

    def way(place: Place) -> float:
        row = place.logits.copy()
        offers = [_kept(one, ~digits[one.ids]) for one in place.shift.offers]
        add_shifts(row, [Shift(mapped, place.shift.row, 1.0, offers)])
        return nats(row, place.targets)

    return {
        "digits: no shift": way,
        "digits: chosen by the base": by_class(classes, 1.0, {DIGITS: 0.0}),
    }


def _kept(offer: Offer, keep: NDArray[np.bool_]) -> Offer:
    return replace(offer, ids=offer.ids[keep], values=offer.values[keep])


def by_class(classes: Ids, mass: float, inside: Mapping[int, float]) -> Way:
    """The classes' masses at one strength, the choice within a class at its own (or that one)."""

    def way(place: Place) -> float:
        own = int(classes[place.targets[0]])
        return _class_nats(place, classes, mass, inside.get(own, mass))

    return way


def _class_nats(place: Place, classes: Ids, mass: float, alpha: float) -> float:
    """What a place's token costs: its class at the strength `mass`, within it at `alpha`."""
    own = int(classes[place.targets[0]])
    chosen = logsumexp(place.row(alpha)[place.targets])
    within = _class_masses(place, alpha, classes)[own] - chosen
    return float(within + place.total(mass) - _class_masses(place, mass, classes)[own])


def _class_masses(place: Place, alpha: float, classes: Ids) -> NDArray[np.float64]:
    """(classes,) the log of each class's mass, as logits."""

    def find() -> NDArray[np.float64]:
        row = place.row(alpha)
        top = row.max()
        with np.errstate(divide="ignore"):  # a class may be empty, or out of float32's reach
            return np.log(np.bincount(classes, np.exp(row - top))) + float(top)

    return place.once((id(classes), alpha), find)


def by_ratio(strengths: NDArray[np.float32]) -> Way:
    """Each base token's log-ratio, steered to plain, times its own strength, (V_base,)."""

    def way(place: Place) -> float:
        steered = place.row(1.0)
        change = steered - place.logits
        change -= np.float32(place.total(1.0) - place.total(0.0))
        return nats(place.logits + strengths * change, place.targets)

    return way


def _class_ways(base: Vocabulary, loaded: LoadedAdapter, classes: Ids) -> dict[str, Way]:
    ends = _ends(classes)
    matches = maps(base, loaded)[0].matches
    return {
        "classes at 1, words at 0.5": by_class(classes, 1.0, {WORDS: 0.5, INSIDES: 0.5}),
        "classes at 1, all within at 0.5": by_class(classes, 1.0, dict.fromkeys(range(5), 0.5)),
        "classes at 0.5, all within at 1": by_class(classes, 0.5, dict.fromkeys(range(5), 1.0)),
        "end at 1, all else at 0.25": by_class(ends, 1.0, {0: 0.25}),
        "end at 1, all else at 0.5": by_class(ends, 1.0, {0: 0.5}),
        "end at 1, all else plain": by_class(ends, 1.0, {0: 0.0}),
        "end at 0.5, all else at 1": by_class(ends, 0.5, {0: 1.0}),
        "log-ratios, words at 0.5": by_ratio(_halved(np.isin(classes, (WORDS, INSIDES, DIGITS)))),
        "log-ratios, near matches at 0.5": by_ratio(_halved(matches == Match.NEAR)),
        "log-ratios, near matches at 0.25, all else at 0.5": by_ratio(
            _halved(matches == Match.NEAR) / 2
        ),
    }


def _ends(classes: Ids) -> Ids:
    """Two classes: the end and all else."""
    return (classes == END).astype(np.intp)


def _halved(chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(chosen, np.float32(0.5), np.float32(1.0))


# --- gates ---------------------------------------------------------------------------------------

Gate = Callable[[Place], float]
"""A place's strength, from 0 to 1."""


def unsure_base(place: Place) -> float:
    """1 less the probability of the base's likeliest token: where it is sure, leave it alone."""
    return 1 - float(np.exp(float(place.logits.max()) - place.total(0.0)))


def sure_delta(place: Place) -> float:
    """The probability of the delta's likeliest token."""
    row = place.shift.row
    return float(np.exp(float(row.max()) - logsumexp(row)))


def gated(gate: Gate, ends: Ids | None = None) -> Way:
    """The gate's strength, to the nearest quarter; with `ends` the end's mass is at strength 1."""

    def way(place: Place) -> float:
        alpha = round(4 * gate(place)) / 4
        return default(alpha)(place) if ends is None else _class_nats(place, ends, 1.0, alpha)

    return way


def _gate_ways(classes: Ids) -> dict[str, Way]:
    ends = _ends(classes)
    gates: dict[str, Gate] = {
        "unsure base": unsure_base,
        "sure delta": sure_delta,
        "both": lambda place: unsure_base(place) * sure_delta(place),
    }
    return {
        **{f"gate, {name}": gated(gate) for name, gate in gates.items()},
        **{f"gate, {name}, end at 1": gated(gate, ends) for name, gate in gates.items()},
    }
