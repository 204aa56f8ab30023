"""What rows cost on this machine: measured once for each model, then kept in the cache folder.

Kept because guesses are made by it: measured anew each time, the same request could be decoded in
batches of other sizes, whose kernels round differently. A file that cannot be written or read
costs the measurement again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

from cmc_local.base_batch import Span
from cmc_local.runs import Base
from cmc_local.shift_source import ShiftSource
from cmc_local.speculation import NEVER, RowCosts
from cmc_local.token_map import cache_folder

ROWS: Final = (1, 2, 4, 8)
_ENOUGH: Final = 1.0
"""Seconds after which no further round is timed."""
_ROUNDS: Final = 5
_VERSION: Final = 1


def base_costs(base: Base, identity: str, *, cache_dir: Path | None = None) -> RowCosts:
    """The costs of a base model's rows; NEVER where it cannot take rows back.

    Uses sequence 0, which is empty before and after.
    """
    if not base.can_roll_back or base.n_ctx < max(ROWS):
        return NEVER

    def run(rows: int) -> None:
        base.decode_spans([Span(0, 0, [0] * rows, range(rows))])
        base.clear(0)

    return _kept(f"base {identity}", run, cache_dir)


def delta_costs(source: ShiftSource, identity: str, *, cache_dir: Path | None = None) -> RowCosts:
    """The costs of a delta's rows; uses slot 0, which is empty before and after."""

    def run(rows: int) -> None:
        source.feed(0, [0] * rows, rows)
        source.truncate(0, 0)

    return _kept(f"delta {identity}", run, cache_dir)


def _kept(identity: str, run: Callable[[int], None], cache_dir: Path | None) -> RowCosts:
    key = hashlib.sha256(f"{_VERSION} {ROWS} {identity}".encode()).hexdigest()[:32]
    path = (cache_dir or cache_folder()) / "row-costs" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        costs = {int(rows): float(seconds) for rows, seconds in found.items()}
        if tuple(costs) == ROWS and all(seconds > 0 for seconds in costs.values()):
            return RowCosts(costs)
    costs = measure(run)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(costs), encoding="utf-8")
        part.replace(path)
    return RowCosts(costs)


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
