"""Loss by kind of token: where the delta's shift helps a real base, and what each map adds to it.

    held-out answers --> SteeredModel.passage --> base logits, each delta's row and offers
                                                        |  once for all ways
    a kind for each token of an answer  <---------------+--> nats of the token in each *way*

A way is a strength, a map and whether mid-token offers count, or one of the trials of
kind_trials.py. Rows are shifted by the runner's own `add_shifts`, so that what is measured is what
runs. The end of an answer counts as one more token: the mass of all tokens that end a reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import repeat
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmc_local.engine.scoring import Passage
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control
from cmc_local.steer.control import Logits, MappedShift, Shift, add_shifts
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text import token_map
from cmc_local.text.alignment import DeltaPrompt
from cmc_local.text.token_map import Match, TokenMap
from cmc_local.text.vocabulary import Role, Vocabulary

Ids = NDArray[np.intp]
Ask = Callable[[Logits], Any]
"""A base's logits -> what the delta says of its likeliest tokens."""
Known = TypeVar("Known")


class Kind(StrEnum):
    """What a token is in its answer."""

    BEGINNING = "word beginnings"
    INSIDE = "word insides"
    DIGITS = "digits"
    NAME = "names"
    PUNCTUATION = "punctuation"
    WHITESPACE = "whitespace"
    END = "end of turn"


_IN_WORD: Final = re.compile(r"(?:\w|\w['\u2019])$")
_SENTENCE_START: Final = re.compile(r"(?:^|[.!?:\n])[\s\"'\u201c\u2018(]*$")


def kind(text: bytes, before: str) -> Kind:
    """The kind of a token with a text, given the answer before it.

    A token's first character that is no space decides. Bytes within a character are word insides.
    """
    said = text.decode("utf-8", "ignore")
    shown = said.lstrip()
    if not shown:
        return Kind.WHITESPACE if said else Kind.INSIDE
    if shown[0].isdigit():
        return Kind.DIGITS
    if not shown[0].isalpha():
        return Kind.PUNCTUATION
    if shown == said and _IN_WORD.search(before):
        return Kind.INSIDE
    if shown[0].isupper() and not _SENTENCE_START.search(before):
        return Kind.NAME
    return Kind.BEGINNING


def kinds_of(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[Kind]:
    """The kind of each token of an answer; one that ends a generation is its end."""
    found, said = [], b""
    for token in tokens:
        text = vocabulary.tokens[token]
        is_end = vocabulary.roles[token] == Role.EOS
        found.append(Kind.END if is_end else kind(text, said.decode("utf-8", "ignore")))
        said += text
    return found


# --- ways ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Place:
    """One position of an answer, before its token."""

    logits: Logits
    """(V_base,) float32, the base's own; not to be changed"""
    shift: Shift
    """The delta's row with its offers, by the default map."""
    targets: Ids
    """The base tokens whose mass is the answer's next token: one, or all that end a reply."""
    ask: Ask | None = None
    """Asks the delta ahead (kind_trials.py)."""
    _rows: dict[float, Logits] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def row(self, alpha: float) -> Logits:
        """(V_base,) float32, the logits as they run by default at a strength; not to be changed."""
        if alpha == 0:
            return self.logits
        if alpha not in self._rows:
            row = self.logits.copy()
            add_shifts(row, [replace(self.shift, alpha=alpha)])
            self._rows[alpha] = row
        return self._rows[alpha]

    def total(self, alpha: float) -> float:
        """log(sum(exp(row(alpha))))."""
        return self.once(("total", alpha), lambda: logsumexp(self.row(alpha)))

    def once(self, key: Hashable, find: Callable[[], Known]) -> Known:
        """What several ways need of this place, found once."""
        if key not in self._known:
            self._known[key] = find()
        found: Known = self._known[key]
        return found


Way = Callable[[Place], float]
"""The nats of a place's token."""


def nats(row: Logits, targets: Ids) -> float:
    """What the mass of the targets costs, in float64."""
    return logsumexp(row) - logsumexp(row[targets])


def logsumexp(row: NDArray[np.floating[Any]]) -> float:
    """log(sum(exp(row))); -inf of nothing."""
    if not len(row):
        return -np.inf
    top = row.max()
    return float(top) + float(np.log(np.exp(row - top).sum(dtype=np.float64)))


def default(alpha: float) -> Way:
    """As it runs by default, at a strength; 0 is the plain base."""
    return lambda place: place.total(alpha) - logsumexp(place.row(alpha)[place.targets])


def through(mapped: MappedShift, *, join: bool, alpha: float = 1.0) -> Way:
    """By another map, with mid-token offers or without."""

    def way(place: Place) -> float:
        row = place.logits.copy()
        offers = place.shift.offers if join else ()
        add_shifts(row, [Shift(mapped, place.shift.row, alpha, offers)])
        return nats(row, place.targets)

    return way


def only(full: TokenMap, matches: Sequence[Match]) -> TokenMap:
    """The map with these matches alone; the others have no counterpart."""
    kept = np.isin(full.matches, np.array(matches, np.uint8))
    return TokenMap(
        np.where(kept, full.ids, -1).astype(np.int32),
        np.where(kept, full.matches, Match.NONE).astype(np.uint8),
        full.delta_size,
    )


def maps(base: Vocabulary, loaded: LoadedAdapter) -> tuple[TokenMap, TokenMap]:
    """The default map and PM-MinED's."""
    tokenizer = loaded.tokenizer
    first, paper = (
        token_map.load_or_build(
            base,
            loaded.source.vocabulary,
            fallback=fallback,
            encode=tokenizer.encode,
            tokenizer_sha256=tokenizer.sha256,
        )
        for fallback in (Control().fallback, "none")
    )
    return first, paper


DEFAULT: Final = "default"
"""first-piece, mid-token offers, alpha 1: the way that the others are compared with."""
ALPHAS: Final = (0.25, 0.5, 0.75)


def map_ways(base: Vocabulary, loaded: LoadedAdapter) -> dict[str, Way]:
    """Plain, every map with offers and without, and the default at smaller strengths."""
    first, paper = maps(base, loaded)
    exact = only(first, (Match.EXACT, Match.ROLE))
    found: dict[str, Way] = {"plain": default(0.0)}
    for name, one in (("exact", exact), ("PM-MinED", paper), ("first-piece", first)):
        mapped = MappedShift(one, Control())
        found[f"{name}, off"] = through(mapped, join=False)
        if name != "first-piece":
            found[f"{name}, join"] = through(mapped, join=True)
            found[f"{name}, join, alpha 0.5"] = through(mapped, join=True, alpha=0.5)
    return {**found, DEFAULT: default(1.0), **{f"alpha {one:g}": default(one) for one in ALPHAS}}


# --- measuring -----------------------------------------------------------------------------------

Follow = Callable[[DeltaPrompt, Sequence[bytes]], Iterator[Ask]]
"""(a delta's prompt, the text's pieces) -> for each position what asks that delta ahead."""


def answer_kinds(
    model: SteeredModel,
    talks: Sequence[tuple[str, str]],
    ways: Mapping[str, Mapping[str, Way]],
    follow: Mapping[str, Follow] | None = None,
) -> Iterator[dict[str, Any]]:
    """For each (question, answer) its tokens' kinds and what they cost.

    `ways` and `follow` are each adapter's, by its name in the model. A value holds `tokens`,
    `kinds` and `nats`: adapter -> way -> a number for each token.
    """
    vocabulary = model.base.vocabulary
    for question, answer in talks:
        with model.passage(question, answer) as whole:
            if vocabulary.eos_id is None:
                passage = whole
            else:
                passage = replace(whole, tokens=[*whole.tokens, vocabulary.eos_id])
            kinds = kinds_of(vocabulary, passage.tokens)
            yield {
                "tokens": list(passage.tokens),
                "kinds": [str(one) for one in kinds],
                "nats": _costs(passage, vocabulary, ways, follow or {}),
            }


def _costs(
    passage: Passage,
    vocabulary: Vocabulary,
    ways: Mapping[str, Mapping[str, Way]],
    follow: Mapping[str, Follow],
) -> dict[str, dict[str, list[float]]]:
    ends = np.flatnonzero(vocabulary.roles == Role.EOS)
    pieces = [vocabulary.tokens[token] for token in passage.tokens[:-1]]
    asking: dict[str, Iterator[Ask | None]] = {
        one.name: follow[one.name](one.prompt, pieces) if one.name in follow else repeat(None)
        for one in passage.active
    }
    costs: dict[str, dict[str, list[float]]] = {
        name: {way: [] for way in some} for name, some in ways.items()
    }
    for token, (logits, shifts) in zip(passage.tokens, passage.positions(), strict=True):
        targets = ends if token in ends else np.array([token])
        for one, shift in zip(passage.active, shifts, strict=True):
            place = Place(logits, shift, targets, next(asking[one.name]))
            for way, cost in ways[one.name].items():
                costs[one.name][way].append(cost(place))
    return costs
