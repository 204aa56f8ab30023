"""The results document: one row for each model, arm and strength that was measured.

    {"format": 1, "rows": [{"task": "nll", "model": "other", "vocabulary": 1184, "arm": "steered",
      "adapter": "instruct", "alpha": 1.0, "metrics": {"nll": 0.52, ...}, "count": 296,
      "data": "5f1c...", "command": "cmc-local eval nll ... --alphas 1"}]}

Knows rows and files; nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cmc_local.errors import DataError, UsageError

FORMAT = 1
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Strength:
    """The strengths of one row."""

    alphas: Mapping[str, float]
    """Of each loaded adapter, by name."""

    @property
    def alpha(self) -> float | None:
        """The strength of the adapters that act; 0 where none does, None where they differ."""
        return _one({alpha for alpha in self.alphas.values() if alpha} or {0.0})

    @property
    def given(self) -> float | None:
        """The one number that gives every adapter its strength, as --alphas does; else None."""
        return _one(set(self.alphas.values()) or {0.0})

    @property
    def adapter(self) -> str | None:
        """The names of the adapters that act, joined by "+"; None for none."""
        return "+".join(name for name, alpha in self.alphas.items() if alpha) or None

    @property
    def key(self) -> str:
        """What a journal calls it: `instruct=1+forget=0.5`, or `plain`."""
        acting = (f"{name}={alpha:.12g}" for name, alpha in self.alphas.items() if alpha)
        return "+".join(acting) or "plain"


def _one(values: set[float]) -> float | None:
    return next(iter(values)) if len(values) == 1 else None


def strengths(own: Mapping[str, float], asked: Sequence[float] | None) -> list[Strength]:
    """A strength for each row; without a word about them plain, then the adapters' own.

    `own` holds each loaded adapter's strength. UsageError for a strength with no adapter to give
    it to.

    >>> [one.key for one in strengths({"instruct": 0.8}, None)]
    ['plain', 'instruct=0.8']
    """
    if asked is None:
        rows = [dict.fromkeys(own, 0.0), dict(own)]
    else:
        rows = [dict.fromkeys(own, alpha) for alpha in asked]
        if not own and any(asked):
            raise UsageError("no adapter is loaded to give a strength to: name one with --adapter")
    found: dict[str, Strength] = {}
    for alphas in rows:
        found.setdefault(Strength(alphas).key, Strength(alphas))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One model in one arm, measured on one task's data."""

    task: str
    model: str
    arm: str
    vocabulary: int | None = None
    """Tokens of the model."""
    adapter: str | None = None
    alpha: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    count: int | None = None
    """Examples measured."""
    command: str | None = None
    """The command line that makes this row again."""
    data: str | None = None
    """What it was measured on, and how: only rows of one `data_key` can be compared."""
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name -> one number for each example."""

    @property
    def label(self) -> str:
        """The arm, and the adapter where there is one."""
        return self.arm if self.adapter is None else f"{self.arm} ({self.adapter})"


def data_key(settings: Mapping[str, Any]) -> str:
    """The same for the same settings (data, limit, sampling; JSON), 16 hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def document(rows: Iterable[ResultRow]) -> dict[str, Any]:
    """The results document; a row without per-item numbers has no `items`."""
    records = (asdict(row) for row in rows)
    kept = [{k: v for k, v in one.items() if k != "items" or v} for one in records]
    return {"format": FORMAT, "rows": kept}


def read_results(path: Path) -> dict[str, Any]:
    """A results document; DataError where the file is none. Its user checks what is in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} cannot be read ({reason}): give what `cmc-local eval ... --output` wrote"
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(
            f"{path} is no results file of format {FORMAT}: give what `cmc-local eval ... --output`"
            " wrote"
        )
    return found


def forget_ratios(path: Path, split: str) -> Sequence[float]:
    """The truth ratios that one row of a results file has for a forget set such as `forget10`.

    Of several rows the one whose arm is `retrained`. DataError where it is not plain which.
    """
    every = read_results(path).get("rows")
    rows = [row for row in every if _has(row, split)] if isinstance(every, list) else []
    if len(rows) > 1:
        rows = [row for row in rows if row.get("arm") == "retrained"]
    if len(rows) != 1:
        raise DataError(
            f"{path} has {len(rows)} rows to compare the forget set {split} with: measure the "
            "retrained model with `cmc-local eval tofu --arm retrained`"
        )
    found: Sequence[float] = rows[0]["items"][split]
    if not isinstance(found, list) or not all(type(one) in (int, float) for one in found):
        raise DataError(f"{path}: the truth ratios of {split} are no numbers: measure again")
    return found


def _has(row: Any, split: str) -> bool:
    items = row.get("items") if isinstance(row, dict) else None
    return isinstance(items, dict) and split in items


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, evenly spread, so that a sorted file is met in all its parts.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
