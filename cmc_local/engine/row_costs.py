"""What rows cost on this machine: measured once for each model, then kept in the cache folder.

Kept because guesses are made by it: measured anew each time, the same request could be decoded in
batches of other sizes, whose kernels round differently. A file that cannot be written or read
costs the measurement again.

Attention makes every row dearer the more comes before it. That is measured behind the first prompt
that is long enough (`deepened`), before its reply goes on: to decode one for the measurement alone
would take seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Final

from cmc_local.base.span import Span
from cmc_local.delta.source import ShiftSource
from cmc_local.engine.prompt_lookup import NEVER, RowCosts
from cmc_local.engine.runs import Base
from cmc_local.files import cache_folder

ROWS: Final = (1, 2, 4, 8)
_ENOUGH: Final = 1.0
"""Seconds after which no further round is timed."""
_ROUNDS: Final = 5
_VERSION: Final = 2
DEEP: Final = 256
"""Tokens before the rows, at least, where it is measured what these cost."""
DEEP_ROWS: Final = 4


def base_costs(base: Base, identity: str, *, cache_dir: Path | None = None) -> RowCosts:
    """The costs of a base model's rows; NEVER where it cannot take rows back.

    Uses sequence 0, which is empty before and after.
    """
    if not base.can_roll_back or base.n_ctx < max(ROWS):
        return NEVER

    def run(rows: int) -> None:
        base.decode_spans([Span(0, 0, [0] * rows, range(rows))])
        base.clear(0)

    return _kept(f"base {identity}", run, cache_dir, deeper=None)


def keep_base_costs(identity: str, costs: RowCosts, *, cache_dir: Path | None = None) -> None:
    """Keep what has been learnt of a base model, for the next `base_costs`."""
    _write(_path(f"base {identity}", cache_dir), costs)


def deepened(base: Base, costs: RowCosts, sequence: int, depth: int) -> RowCosts | None:
    """The costs, with what rows cost more behind the `depth` tokens that a sequence holds.

    The sequence is as before then; the logits of the last decode are not. None where the base
    does not take the rows back: the sequence is to be decoded again.
    """
    tokens = [0] * DEEP_ROWS
    least = float("inf")
    for _ in range(3):
        before = perf_counter()
        base.decode_spans([Span(sequence, depth, tokens, range(DEEP_ROWS))])
        least = min(least, perf_counter() - before)
        if not base.truncate(sequence, depth):
            return None
    return replace(costs, deeper=max(0.0, least - costs.cost(DEEP_ROWS)) / (DEEP_ROWS * depth))


def delta_costs(source: ShiftSource, identity: str, *, cache_dir: Path | None = None) -> RowCosts:
    """The costs of a delta's rows; uses slot 0, which is empty before and after."""

    def run(rows: int) -> None:
        source.feed(0, [0] * rows, rows)
        source.truncate(0, 0)

    return _kept(f"delta {identity}", run, cache_dir)


def _kept(
    identity: str,
    run: Callable[[int], None],
    cache_dir: Path | None,
    *,
    deeper: float | None = 0.0,
) -> RowCosts:
    path = _path(identity, cache_dir)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = {int(rows): float(spent) for rows, spent in found["seconds"].items()}
        known = None if found["deeper"] is None else float(found["deeper"])
        if tuple(seconds) == ROWS and min(seconds.values()) > 0 and (known or 0.0) >= 0:
            return RowCosts(seconds, known)
    costs = RowCosts(measure(run), deeper)
    _write(path, costs)
    return costs


def _path(identity: str, cache_dir: Path | None) -> Path:
    key = hashlib.sha256(f"{_VERSION} {ROWS} {identity}".encode()).hexdigest()[:32]
    return (cache_dir or cache_folder()) / "row-costs" / f"{key}.json"


def _write(path: Path, costs: RowCosts) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(costs)), encoding="utf-8")
        part.replace(path)


def measure(run: Callable[[int], None]) -> dict[int, float]:
    """Seconds of `run(rows)` for each of ROWS: the least of a few rounds, after one that warms."""
    for rows in ROWS:
        run(rows)
    least = dict.fromkeys(ROWS, float("inf"))
    begun = perf_counter()
    for _ in range(_ROUNDS):
        for rows in ROWS:
            before = perf_counter()
            run(rows)
            least[rows] = min(least[rows], perf_counter() - before)
        if perf_counter() - begun > _ENOUGH:
            break
    return least
