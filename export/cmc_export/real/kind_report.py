"""What `kinds` found, as tables: nats a token by kind and way, and differences with intervals.

    runs/kinds/BASE.TEMPLATE[.TEMPLATE].journal.jsonl    every token's kind and costs
    runs/kinds/table.md                                  the tables

Measures where there is no journal yet; a stopped one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmc_export.real import kind_trials
from cmc_export.real.data import read_records
from cmc_export.real.kinds import ALPHAS, DEFAULT, Ids, Kind, answer_kinds, map_ways
from cmc_export.real.places import BESIDE, FULL_NAMES, TaskPlace, gguf
from cmc_local.errors import InputError
from cmc_local.evaluate.journal import Journal, fingerprint
from cmc_local.files import write_text
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

CONTEXT: Final = 2048
FORMAT: Final = 2
"""Of the journal: raise it when a way changes."""
MAPS: Final = (
    "plain",
    "exact, off",
    "exact, join",
    "PM-MinED, off",
    "PM-MinED, join",
    "first-piece, off",
    DEFAULT,
    "alpha 0.5",
)
PAIRS: Final = (
    (DEFAULT, "plain"),
    (DEFAULT, "exact, join"),
    (DEFAULT, "PM-MinED, join"),
    (DEFAULT, "first-piece, off"),
    ("alpha 0.5", DEFAULT),
)
Say = Callable[[str], None]


def measure(
    base: str, templates: Sequence[str], runs: Path, task: str, threads: int, say: Say
) -> dict[str, Costs]:
    """Every way's costs of one base on a task's test answers, for the delta of each template."""
    place = TaskPlace(runs, task)
    records = read_records(place.data("test"))
    folders = {name: place.adapter(name, 0) for name in templates}
    for folder in folders.values():
        if not folder.is_dir():
            raise InputError(f"no {folder}: make it with `python -m cmc_export.real run`")
    settings = {
        "format": FORMAT,
        "base": fingerprint(gguf(base)),
        "test": fingerprint(place.data("test")),
        **{name: fingerprint(folder / "adapter.json") for name, folder in folders.items()},
    }
    path = runs / "kinds" / f"{task}.{base}.{'.'.join(templates)}.journal.jsonl"
    talks = [(one["question"], one["answer"]) for one in records]
    told = _Told(len(talks), f"{task} on {base}", say)
    with Journal(path, settings) as journal:
        work = partial(_work, base, folders, threads)
        values = journal.values("answers", talks, work, told)
    return {template: Costs.of(values, template) for template in templates}


def _work(
    base: str, folders: Mapping[str, Path], threads: int, talks: Sequence[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The values of `answer_kinds`, by template; the models are loaded where there is any to do."""
    if not talks:
        return
    limits = Limits(context=CONTEXT, parallel=2)  # the second slot asks the delta ahead
    with SteeredModel.load(
        gguf(base), limits=limits, threads=threads or None, speculate=0
    ) as model:
        names = {model.add(folder): template for template, folder in folders.items()}
        vocabulary = model.base.vocabulary
        ways, follow = {}, {}
        for name, loaded in model.adapters.items():
            trials = kind_trials.trial_ways(vocabulary, loaded)
            ways[name] = {**map_ways(vocabulary, loaded), **trials}
            follow[name] = kind_trials.Asker(loaded, vocabulary, slot=1).follow
        for value in answer_kinds(model, talks, ways, follow):
            yield {**value, "nats": {names[one]: way for one, way in value["nats"].items()}}


class _Told:
    """A line for every tenth answer."""

    def __init__(self, count: int, what: str, say: Say) -> None:
        self._count, self._what, self._say, self._done = count, what, say, 0

    def __call__(self) -> None:
        self._done += 1
        if self._done % 10 == 0 or self._done == self._count:
            self._say(f"{self._what}: {self._done} of {self._count} answers")


def write(
    bases: Sequence[str],
    templates: Sequence[str],
    runs: Path,
    threads: int,
    say: Say,
    task: str = "short",
) -> None:
    """Measure what is missing and write runs/kinds/table.md."""
    parts = []
    for base in bases:
        for template, costs in measure(base, templates, runs, task, threads, say).items():
            parts.append(
                f"## {FULL_NAMES[base]}, the delta {BESIDE[template]}\n\n"
                + "\n".join((table(costs, MAPS), differences(costs, PAIRS), trials(costs)))
            )
    path = runs / "kinds" / "table.md"
    write_text(path, "\n".join(parts))
    say(str(path))


def trials(costs: Costs) -> str:
    """Markdown: what each trial costs, less the default at strength 1 and less the best one."""
    best = min((DEFAULT, *(f"alpha {one:g}" for one in ALPHAS)), key=costs.mean)
    rows = [
        [name, f"{costs.mean(name):.3f}"]
        + [interval_text(*costs.difference(name, other)) for other in (DEFAULT, best)]
        for name in costs.ways
        if name not in MAPS
    ]
    return markdown(["trial", "nats a token", f"less {DEFAULT}", f"less {best}"], rows)


@dataclass(frozen=True, eq=False)
class Costs:
    """What every token costs in every way, of one base with one adapter."""

    kinds: NDArray[np.str_]
    """(n,)"""
    examples: Ids
    """(n,) the answer that a token is in, from 0"""
    ways: Mapping[str, NDArray[np.float64]]
    """way -> (n,) nats"""

    @classmethod
    def of(cls, values: Sequence[Mapping[str, Any]], adapter: str) -> Costs:
        """From the values of `answer_kinds`."""
        counts = [len(one["kinds"]) for one in values]
        return cls(
            np.array([kind for one in values for kind in one["kinds"]]),
            np.repeat(np.arange(len(values)), counts),
            {
                way: np.concatenate([one["nats"][adapter][way] for one in values])
                for way in values[0]["nats"][adapter]
            },
        )

    def share(self, kind: str | None) -> float:
        """The share of tokens that are of a kind."""
        return float(self._of(kind).mean())

    def mean(self, way: str, kind: str | None = None) -> float:
        """Nats a token in a way, of all tokens or of one kind."""
        return float(self.ways[way][self._of(kind)].mean())

    def difference(self, way: str, other: str, kind: str | None = None) -> tuple[float, ...]:
        """Nats a token of one way less those of another: mean, low, high.

        The interval is of the examples drawn anew, 95 of 100 times; longer ones count for more.
        """
        chosen = self._of(kind)
        values = np.where(chosen, self.ways[way] - self.ways[other], 0.0)
        return ratio(self._sums(values), self._sums(chosen.astype(float)))

    def _of(self, kind: str | None) -> NDArray[np.bool_]:
        return np.ones(len(self.kinds), np.bool_) if kind is None else self.kinds == kind

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(self.examples, values)


def ratio(
    sums: NDArray[np.float64], counts: NDArray[np.float64], *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """sum(sums) / sum(counts) and its 95 % interval, the examples drawn anew (bootstrap).

    Draws without any counted token are left out.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sums), size=(draws, len(sums)))
    totals = counts[drawn].sum(axis=1)
    found = sums[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


# --- tables --------------------------------------------------------------------------------------


def table(costs: Costs, ways: Sequence[str]) -> str:
    """Markdown: nats a token by kind, a column for each way."""
    head = ["", "share", *ways]
    rows = [["all", "1.000", *(f"{costs.mean(way):.3f}" for way in ways)]]
    for one in Kind:
        if (costs.kinds == one).any():
            means = (f"{costs.mean(way, one):.3f}" for way in ways)
            rows.append([str(one), f"{costs.share(one):.3f}", *means])
    return markdown(head, rows)


def differences(costs: Costs, pairs: Sequence[tuple[str, str]]) -> str:
    """Markdown: by kind the first way less the second with its interval, a column for each pair."""
    head = ["", *(f"{way} less {other}" for way, other in pairs)]
    rows = []
    for one in (None, *Kind):
        if one is None or (costs.kinds == one).any():
            found = (costs.difference(way, other, one) for way, other in pairs)
            rows.append([str(one or "all"), *(interval_text(*three) for three in found)])
    return markdown(head, rows)


def interval_text(mean: float, low: float, high: float) -> str:
    """`-0.120 (-0.150, -0.090)`"""
    return f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
