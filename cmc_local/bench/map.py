"""What the token map costs: made once, read from the cache, and used at every step.

    made      both vocabularies in memory, nothing cached; fingerprints included
    cached    the same with the map on disk
    add       a row's shift scaled, gathered and added: what no adapter can do without
    + fill    the same where unmapped tokens get the neutral fill

The steps take random logits: what they cost does not depend on the numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cmc_local.bench.arms import undisturbed
from cmc_local.bench.paired import spread
from cmc_local.settings import Control, Fallback
from cmc_local.steer.control import MappedShift, Shift, add_shifts
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.token_map import TokenMap
from cmc_local.text.vocabulary import Vocabulary

STEPS = 20
"""Rows that one timing of a step adds to."""


@dataclass(frozen=True)
class Mapping:
    """One base's vocabulary carried over to one delta's; times in seconds."""

    base: str
    delta: str
    base_size: int
    delta_size: int
    unmapped: int
    made: Sequence[float]
    cached: Sequence[float]
    add: Sequence[float]
    add_and_fill: Sequence[float]


def measure(
    base: str,
    vocabulary: Vocabulary,
    delta: str,
    tokenizer: DeltaTokenizer,
    fallback: Fallback,
    rounds: int,
) -> Mapping:
    """Each part in turn, `rounds` times."""
    made: list[float] = []
    cached: list[float] = []
    found: TokenMap | None = None
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for times in (made, cached):
                for one in (vocabulary, tokenizer.vocabulary):
                    one.__dict__.pop("fingerprint", None)
                with undisturbed():
                    begun = perf_counter()
                    found = token_map.load_or_build(
                        vocabulary,
                        tokenizer.vocabulary,
                        fallback=fallback,
                        encode=tokenizer.encode,
                        tokenizer_sha256=tokenizer.sha256,
                        cache_dir=Path(folder),
                    )
                    times.append(perf_counter() - begun)
    assert found is not None
    add, add_and_fill = _steps(found, rounds)
    return Mapping(
        base=base,
        delta=delta,
        base_size=len(vocabulary),
        delta_size=len(tokenizer.vocabulary),
        unmapped=int((found.ids < 0).sum()),
        made=made,
        cached=cached,
        add=add,
        add_and_fill=add_and_fill,
    )


def _steps(found: TokenMap, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of one row's step without and with the fill, in turn."""
    draw = np.random.default_rng(0)
    base = draw.normal(size=len(found.ids)).astype(np.float32)
    shift = draw.normal(size=found.delta_size).astype(np.float32)
    ways = [MappedShift(found, Control(unmapped=kind)) for kind in ("zero", "neutral")]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for mapped, own in zip(ways, times, strict=True):
            row = base.copy()
            with undisturbed():
                begun = perf_counter()
                for _ in range(STEPS):
                    add_shifts(row, [Shift(mapped, shift, 0.5)])
                spent = (perf_counter() - begun) / STEPS
            if number >= 0:
                own.append(spent)
    return times


def as_lines(found: Sequence[Mapping]) -> Iterator[str]:
    """The table: a row for each pair of vocabularies."""
    base = max(len("base"), *(len(one.base) for one in found))
    delta = max(len("delta"), *(len(one.delta) for one in found))
    yield (
        f"{'base':<{base}}  {'tokens':>7}  {'delta':<{delta}}  {'tokens':>7}  {'none':>5}"
        f"  {'made, s':>7}  {'cached, ms':>10}  {'add, us':>7}  {'+ fill':>7}"
    )
    for one in found:
        yield (
            f"{one.base:<{base}}  {one.base_size:>7,}  {one.delta:<{delta}}  {one.delta_size:>7,}"
            f"  {one.unmapped:>5,}  {spread(one.made).median:>7.3f}"
            f"  {1e3 * spread(one.cached).median:>10.1f}  {1e6 * spread(one.add).median:>7.1f}"
            f"  {1e6 * spread(one.add_and_fill).median:>7.1f}"
        )


def as_json(found: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Everything, in JSON's types; medians."""
    return [
        {
            "base": one.base,
            "delta": one.delta,
            "base_tokens": one.base_size,
            "delta_tokens": one.delta_size,
            "unmapped": one.unmapped,
            "made_s": round(spread(one.made).median, 4),
            "cached_ms": round(1e3 * spread(one.cached).median, 2),
            "add_us": round(1e6 * spread(one.add).median, 1),
            "add_and_fill_us": round(1e6 * spread(one.add_and_fill).median, 1),
        }
        for one in found
    ]
