"""Result files -> the lines of the table: what each arm reached, and what it is compared with.

    results/TASK/BASE.ARM[.SEED].json --> Outcome (seeds together) --> Line (with its rivals)

Knows files and numbers; nothing of models or of how a table looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from cmc_export.real.measure import FORMAT
from cmc_export.real.places import BESIDE, FULL_NAMES, TEMPLATES
from cmc_export.real.statistics import Groups, Interval, difference, interval, mean_over_seeds
from cmc_export.real.tasks import TASKS
from cmc_local.errors import DataError

DECIDING: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (task.metric,) for name, task in TASKS.items()},
    "forget": ("missed", "kept"),
}
"""The items whose mean decides, a group each."""
METRIC_NAMES: Final[Mapping[str, str]] = {
    "short": "ROUGE-L F1",
    "label": "exact match",
    "format": "form kept",
    "style": "rules kept",
    "forget": "missed and kept",
}
ALSO: Final[Mapping[str, tuple[str, ...]]] = {
    "short": (),
    "label": ("within",),
    "format": ("right",),
    "style": ("all",),
    "forget": ("missed", "kept"),
}
"""Further figures that a table shows, by their names in the results."""
TITLES: Final[Mapping[str, str]] = {
    **{name: task.title for name, task in TASKS.items()},
    "forget": "Forgetting",
}
PRIMARY: Final = "delta-gemma3"
"""The delta that counts, of every task and base: chosen once, after `short` and before all else."""
LEAST_GAP: Final = 0.05
"""Between plain and LoRA: below it the gap closed is a ratio of two noises."""
AIM_HERE, AIM_ELSEWHERE = 0.9, 0.7
"""Of the gap to LoRA, on a template and on another base."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm at one strength on one task and base, its seeds together."""

    task: str
    base: str
    arm: str
    tuned: bool
    """Whether the strength is the one that validation chose."""
    alphas: tuple[float, ...]
    """One a seed; empty for an arm without a delta."""
    seeds: tuple[int, ...]
    groups: Groups
    """The deciding items, each the mean over the seeds."""
    by_seed: tuple[float, ...]
    """The deciding figure of each seed."""
    metrics: Mapping[str, float]
    """Means over the seeds."""
    help: str
    """What validation chose for the prompted arm."""
    commands: tuple[str, ...]

    @property
    def templates(self) -> str | None:
        """What the delta learned beside."""
        return self.arm.removeprefix("delta-") if self.arm.startswith("delta-") else None

    @property
    def is_at_home(self) -> bool:
        """Whether the base is one that the delta learned beside."""
        return self.templates is not None and self.base in TEMPLATES[self.templates]

    @property
    def label(self) -> str:
        """What the table calls it."""
        if self.templates is None:
            more = f" ({self.help})" if self.help else ""
            return {"lora": "its own LoRA", "proxy": "proxy-tuning"}.get(self.arm, self.arm) + more
        values = sorted(set(self.alphas))
        strength = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
        return f"delta {BESIDE[self.templates]}, alpha {strength}" + (
            " (tuned)" if self.tuned else ""
        )

    @property
    def base_name(self) -> str:
        """The base's full name."""
        return FULL_NAMES[self.base]


@dataclass(frozen=True, slots=True)
class Line:
    """An outcome beside what it is to be compared with; None where that was not measured."""

    outcome: Outcome
    value: Interval
    over_prompted: Interval | None
    """Of a delta: its figure less the prompted arm's, example by example."""
    gap: float | None
    """(value - plain) / (LoRA - plain)."""

    @property
    def beats(self) -> bool | None:
        """Whether the delta's mean is above prompting's."""
        return None if self.over_prompted is None else self.over_prompted.mean > 0

    @property
    def verdict(self) -> str:
        """Whether the aim is met, in words; empty for what is no delta."""
        if self.over_prompted is None:
            return ""
        one = self.over_prompted
        sure = "" if one.low > 0 or one.high < 0 else ", within the noise"
        return f"{'met' if one.mean > 0 else 'not met'} ({one.mean:+.3f}{sure})"

    @property
    def gap_verdict(self) -> str:
        """The gap closed, and whether that is what was aimed at."""
        if self.gap is None:
            return ""
        aim = AIM_HERE if self.outcome.is_at_home else AIM_ELSEWHERE
        return f"{self.gap:.2f} ({'met' if self.gap >= aim else 'not met'})"


def read(runs: Path) -> list[dict[str, Any]]:
    """All result files of a run; DataError for a file that is none."""
    found = []
    for path in sorted((runs / "results").glob("*/*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is no JSON ({error}): delete it and measure again") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DataError(f"{path} is no result of format {FORMAT}: delete it, measure again")
        if document["rows"] and "items" in document["rows"][0]:
            found.append(document)
    return found


def outcomes(documents: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """Documents of one task, base and arm together, a delta at 1 and at its tuned strength."""
    cells: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in documents:
        cells.setdefault((one["task"], one["base"], one["arm"]), []).append(one)
    found = []
    for some in cells.values():
        some.sort(key=lambda one: one["seed"])
        if "tuned" not in some[0]:
            found.append(_outcome(some, [one["rows"][0] for one in some], tuned=False))
            continue
        found.append(_outcome(some, [_at(one, 1.0) for one in some], tuned=False))
        if any(one["tuned"] != 1.0 for one in some):
            found.append(_outcome(some, [_at(one, one["tuned"]) for one in some], tuned=True))
    return sorted(found, key=_order)


def lines(found: Sequence[Outcome]) -> list[Line]:
    """Each outcome beside its rivals on the same task and base."""
    simple = {(one.task, one.base, one.arm): one for one in found if one.templates is None}
    made = []
    for one in found:
        prompted, plain, lora = (
            simple.get((one.task, one.base, arm)) for arm in ("prompted", "plain", "lora")
        )
        over = None
        if one.templates is not None and prompted is not None and _same_examples(one, prompted):
            over = difference(one.groups, prompted.groups)
        value = interval(one.groups)
        made.append(Line(one, value, over, _gap(one, plain, lora)))
    return made


def counted(made: Sequence[Line], *, at_home: bool, tuned: bool) -> list[Line]:
    """One line a task and base: the PRIMARY delta's, where prompting was measured too.

    At alpha 1, or at the strength that validation chose; where it chose 1 both are one line.
    """
    by_place: dict[tuple[str, str], Line] = {}
    for line in made:
        one = line.outcome
        if one.arm != PRIMARY or one.is_at_home != at_home or line.over_prompted is None:
            continue
        place = (one.task, one.base)
        if not one.tuned:
            by_place.setdefault(place, line)
        elif tuned:
            by_place[place] = line
    return list(by_place.values())


def beaten(made: Sequence[Line], *, at_home: bool, tuned: bool = True) -> tuple[int, int]:
    """On how many tasks and bases the counted delta beats prompting, and of how many."""
    some = counted(made, at_home=at_home, tuned=tuned)
    return sum(bool(line.beats) for line in some), len(some)


def _gap(one: Outcome, plain: Outcome | None, lora: Outcome | None) -> float | None:
    if plain is None or lora is None or one.arm in ("plain", "lora"):
        return None
    here, low, high = (fmean(other.by_seed) for other in (one, plain, lora))
    return None if high - low < LEAST_GAP else (here - low) / (high - low)


def _same_examples(one: Outcome, other: Outcome) -> bool:
    return [len(group) for group in one.groups] == [len(group) for group in other.groups]


def _at(document: Mapping[str, Any], alpha: float) -> Mapping[str, Any]:
    row: Mapping[str, Any] = next(row for row in document["rows"] if row["alpha"] == alpha)
    return row


def _outcome(
    documents: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], *, tuned: bool
) -> Outcome:
    first = documents[0]
    names = DECIDING[first["task"]]
    groups = [[row["items"][name] for name in names] for row in rows]
    by_seed = tuple(fmean(fmean(group) for group in some) for some in groups)
    metrics = {
        name: fmean(row["metrics"][name] for row in rows)
        for name in rows[0]["metrics"]
        if all(name in row["metrics"] for row in rows)
    }
    return Outcome(
        task=first["task"],
        base=first["base"],
        arm=first["arm"],
        tuned=tuned,
        alphas=tuple(row["alpha"] for row in rows if "alpha" in row),
        seeds=tuple(one["seed"] for one in documents),
        groups=mean_over_seeds(groups),
        by_seed=by_seed,
        metrics=metrics,
        help=first.get("help", {}).get("name", ""),
        commands=tuple(one["command"] for one in documents),
    )


def _order(one: Outcome) -> tuple[Any, ...]:
    arms = ("plain", "prompted", *(f"delta-{name}" for name in TEMPLATES), "lora", "proxy")
    return (
        list(DECIDING).index(one.task),
        list(FULL_NAMES).index(one.base),
        arms.index(one.arm),
        one.tuned,
    )
