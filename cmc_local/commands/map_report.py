"""What `cmc-local map` says about a token map: counts, worst examples, the why of one token.

Knows vocabularies and maps; reads no file and prints nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmc_local.settings import Fallback
from cmc_local.text.token_map import Match, TokenMap, characters, distance, rivals
from cmc_local.text.vocabulary import Role, Vocabulary

EXAMPLES: Final = 5
"""Worst examples shown of each kind of match."""
_WORTH_SHOWING: Final = (Match.NEAR, Match.FALLBACK, Match.NONE)
_SHOWN_CHARACTERS: Final = 40


@dataclass(frozen=True)
class Side:
    """One of the two vocabularies, and what the user called it."""

    name: str
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Usage:
    """How often each base token occurs in a text."""

    name: str
    uses: NDArray[np.int64]
    """(V_base,) int64"""


@dataclass(frozen=True)
class Report:
    """Everything that the command can print."""

    base: Side
    delta: Side
    made: TokenMap
    fallback: Fallback
    seconds: float
    """Wall time of making the map, or of reading it from the cache."""
    usage: Usage | None = None
    asked: tuple[int, ...] = ()
    """Base tokens to explain."""

    def counts(self) -> dict[str, int]:
        """Kind of match -> number of base tokens."""
        return {match.name.lower(): count for match, count in self.made.counts().items()}

    def text_counts(self) -> dict[str, int]:
        """Kind of match -> number of tokens of the text; empty without one."""
        if self.usage is None:
            return {}
        found = np.bincount(self.made.matches, weights=self.usage.uses, minlength=len(Match))
        return {match.name.lower(): int(found[match]) for match in Match}

    def worst(self, match: Match) -> list[int]:
        """Base tokens of one kind: the most used in the text first, then what loses most."""
        kind = np.flatnonzero(self.made.matches == match)
        if self.usage is not None:
            used = kind[self.usage.uses[kind] > 0]
            return heapq.nsmallest(EXAMPLES, used.tolist(), key=self._rank)
        sizes = _sizes(self.base.vocabulary)[kind]
        if match == Match.NEAR:  # bytes are as many as characters, or more
            sizes = np.abs(sizes - _sizes(self.delta.vocabulary)[self.made.ids[kind]])
        order = np.argsort(-sizes, kind="stable")[: int(np.count_nonzero(sizes))]
        found: list[int] = []
        for i, size in zip(kind[order].tolist(), sizes[order].tolist(), strict=True):
            if len(found) == EXAMPLES and size < self.lost(found[-1]):
                break
            found = sorted([*found, i], key=self._rank)[:EXAMPLES]
        return found

    def lost(self, i: int) -> int:
        """How far a base token's text is from its counterpart's, in characters or else bytes."""
        text, other = self.base.vocabulary.tokens[i], self.made.ids[i]
        if self.made.matches[i] == Match.NEAR:
            return distance(text, self.delta.vocabulary.tokens[other])
        return characters(text) or len(text)

    def _rank(self, i: int) -> tuple[int, int, int]:
        return (-int(self.usage.uses[i]) if self.usage else 0, -self.lost(i), i)


def _sizes(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """(V,) int64, bytes of each token's text."""
    return np.fromiter(map(len, vocabulary.tokens), np.int64, len(vocabulary))


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON object."""
    found: dict[str, Any] = {
        "base": _side_json(report.base),
        "delta": _side_json(report.delta),
        "fallback": report.fallback,
        "seconds": round(report.seconds, 4),
        "counts": report.counts(),
        "worst": {
            match.name.lower(): [_pair_json(report, i) for i in report.worst(match)]
            for match in _WORTH_SHOWING
        },
    }
    if report.usage is not None:
        found["text"] = {"name": report.usage.name, "counts": report.text_counts()}
    if report.asked:
        found["tokens"] = [_pair_json(report, i) for i in report.asked]
    return found


def as_text(report: Report) -> Iterator[str]:
    """The report as lines for a terminal."""
    names = [
        (side.name, f"{len(side.vocabulary):,} tokens") for side in (report.base, report.delta)
    ]
    yield from _table([("base", *names[0]), ("delta", *names[1])], right={2})
    yield f"mapped in {report.seconds:.3f} s, fallback {report.fallback}"
    yield ""
    yield from _counts(report)
    for match, title in zip(_WORTH_SHOWING, ("near", "fallback", "none"), strict=True):
        rows = [_pair_row(report, i) for i in report.worst(match)]
        if rows:
            yield ""
            yield f"{title}: {_order(report, match)}"
            yield from _table(rows, right={0})


def explain(report: Report) -> Iterator[str]:
    """Why each asked token has its counterpart, for a terminal."""
    base, delta = report.base.vocabulary, report.delta.vocabulary
    for i in report.asked:
        role = Role(base.roles[i]).name.lower()
        yield f"base token {i}  {base.names[i]}  {shown(base.tokens[i])}  {role}"
        yield f"  {_why(report, i)}"
        others = [(far, d) for far, d in rivals(base.tokens[i], delta) if d != report.made.ids[i]]
        for far, d in others[:EXAMPLES]:
            yield f"  not {d}  {delta.names[d]}  {shown(delta.tokens[d])}: {far} away"


def shown(text: bytes) -> str:
    """A token's text in quotes, short, nothing in it that a terminal would obey."""
    try:
        whole = text.decode()
    except UnicodeDecodeError:
        return f"<{text[:_SHOWN_CHARACTERS].hex(' ').upper()}>"
    cut = whole[:_SHOWN_CHARACTERS]
    inside = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f'"{inside}"' + (f" and {len(whole) - len(cut)} more" if cut != whole else "")


def _why(report: Report, i: int) -> str:
    match, d, delta = Match(report.made.matches[i]), report.made.ids[i], report.delta.vocabulary
    other = f"delta token {d}  {delta.names[d]}  {shown(delta.tokens[d])}"
    if match == Match.EXACT:
        return f"exact: {other} has the same text"
    if match == Match.NEAR:
        return f"near: {other} is {report.lost(i)} away, and one begins with the other"
    if match == Match.FALLBACK:
        return f"fallback: {other} is the first piece of its text"
    if match == Match.ROLE:
        return f"role: {other} has the same role"
    if report.base.vocabulary.tokens[i]:
        return "none: no delta token begins like it"
    return "none: a token without text has a counterpart by its role only"


def _counts(report: Report) -> Iterator[str]:
    total = len(report.made.ids)
    rows: list[tuple[str, ...]] = [
        (kind, f"{n:,}", _share(n, total)) for kind, n in report.counts().items()
    ]
    head: tuple[str, ...] = ("", "tokens", "share")
    if report.usage is not None:
        length = int(report.usage.uses.sum())
        used = report.text_counts()
        rows = [(*row, f"{used[row[0]]:,}", _share(used[row[0]], length)) for row in rows]
        head = (*head, f"in {report.usage.name}", "share")
    return _table([head, *rows], right={1, 2, 3, 4})


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _order(report: Report, match: Match) -> str:
    if report.usage is not None:
        return "the most frequent in the text"
    return "the farthest from their counterparts" if match == Match.NEAR else "the longest"


def _pair_row(report: Report, i: int) -> tuple[str, ...]:
    base, delta, d = report.base.vocabulary, report.delta.vocabulary, report.made.ids[i]
    uses = [] if report.usage is None else [f"{report.usage.uses[i]:,} x"]
    other = ["-", ""] if d < 0 else [f"-> {d}", shown(delta.tokens[d])]
    return (*uses, str(i), shown(base.tokens[i]) if base.tokens[i] else base.names[i], *other)


def _pair_json(report: Report, i: int) -> dict[str, Any]:
    d = int(report.made.ids[i])
    pair: dict[str, Any] = {
        "base": _token_json(report.base.vocabulary, i),
        "delta": None if d < 0 else _token_json(report.delta.vocabulary, d),
        "match": Match(report.made.matches[i]).name.lower(),
    }
    if pair["match"] == "near":
        pair["distance"] = report.lost(i)
    if report.usage is not None:
        pair["uses"] = int(report.usage.uses[i])
    return pair


def _token_json(vocabulary: Vocabulary, i: int) -> dict[str, Any]:
    return {
        "id": i,
        "spelling": vocabulary.names[i],
        "text": vocabulary.tokens[i].decode("utf-8", "backslashreplace"),
        "role": Role(vocabulary.roles[i]).name.lower(),
    }


def _side_json(side: Side) -> dict[str, Any]:
    vocabulary = side.vocabulary
    return {
        "name": side.name,
        "tokens": len(vocabulary),
        "fingerprint": vocabulary.fingerprint,
    }


def _table(rows: Iterable[tuple[str, ...]], *, right: set[int]) -> Iterator[str]:
    """Rows as lines, columns padded to what a terminal shows (CJK characters take two cells)."""
    from rich.cells import cell_len

    filled = list(rows)
    widths = [max(map(cell_len, column)) for column in zip(*filled, strict=True)]
    for row in filled:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if place in right else cell + space)
        yield "  ".join(cells).rstrip()
