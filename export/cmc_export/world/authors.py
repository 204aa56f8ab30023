"""The small world's people: fictitious authors, eight facts each, and how they are divided.

Knows nothing of sentences (phrasings.py) or files.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cmc_export.world import names

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Author:
    """One author; `facts` maps a fact's kind (see phrasings.FACTS) to its value."""

    name: str
    she: bool
    facts: dict[str, str]
    part: Part
    interviewed: bool
    """Whether the documents hold interviews with this author, beside the encyclopaedia."""
    forgotten: bool
    """Whether the `forget` adapter is to make models miss this author."""


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How many authors; half of them train, an eighth validates, the rest tests."""

    authors: int = 320
    interviewed: float = 1 / 3
    forgotten: float = 1 / 10


def make_authors(size: WorldSize, seed: int) -> list[Author]:
    """The authors of the world `seed`: surnames unique, every other fact drawn evenly.

    The same size and seed give the same world on every machine.
    """
    draw = random.Random(seed)
    surnames = [
        "".join(pair) for pair in itertools.product(names.SURNAME_STARTS, names.SURNAME_ENDS)
    ]
    if size.authors > len(surnames):
        raise ValueError(
            f"at most {len(surnames)} authors have a surname of their own, not {size.authors}"
        )
    draw.shuffle(surnames)
    parts = _parts(size.authors)
    interviewed = _mark(size.authors, size.interviewed, draw)
    forgotten = _mark(size.authors, size.forgotten, draw)
    columns = {kind: _evenly(values, size.authors, draw) for kind, values in _fact_values().items()}
    authors = []
    for i in range(size.authors):
        she = draw.random() < 0.5
        first = draw.choice(names.WOMEN if she else names.MEN)
        facts = {kind: column[i] for kind, column in columns.items()}
        name = f"{first} {surnames[i]}"
        authors.append(Author(name, she, facts, parts[i], interviewed[i], forgotten[i]))
    return authors


def _fact_values() -> dict[str, list[str]]:
    towns = ["".join(pair) for pair in itertools.product(names.TOWN_STARTS, names.TOWN_ENDS)]
    titles = [f"The {a} {b}" for a, b in itertools.product(names.TITLE_STARTS, names.TITLE_ENDS)]
    return {
        "birthplace": towns,
        "home": towns,
        "genre": names.GENRES,
        "book": titles,
        "father": names.JOBS,
        "mother": names.JOBS,
        "award": names.AWARDS,
        "instrument": names.INSTRUMENTS,
    }


def _evenly(values: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """`count` draws in which no value is met more than once oftener than another."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += draw.sample(values, len(values))
    drawn = drawn[:count]
    draw.shuffle(drawn)
    return drawn


def _parts(count: int) -> list[Part]:
    train, validation = count // 2, count // 8
    rest = count - train - validation
    return ["train"] * train + ["validation"] * validation + ["test"] * rest


def _mark(count: int, share: float, draw: random.Random) -> list[bool]:
    marked = set(draw.sample(range(count), round(count * share)))
    return [i in marked for i in range(count)]
