"""Measured rows -> how much of a fine-tune each steered model gets, and what the plots show.

    results documents --> read_rows --> rows -+-> gap_table --> Gap ...       the tables
                                              |-> sweeps    --> Sweep ...     metric by alpha
                                              `-> frontiers --> Frontier ...  forget by retain

Pure functions on numbers; knows neither HTML nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cmc_local.errors import DataError
from cmc_local.evaluate.results import FORMAT, ResultRow

PLAIN: Final = "plain"
FINETUNED: Final = "finetuned"
STEERED: Final = "steered"

HEADLINES: Final[Mapping[str, tuple[str, ...]]] = {
    "nll": ("nll",),
    "rouge": ("rouge_l_f1",),
    "tofu": ("forget_quality", "forget_truth_ratio", "model_utility"),
    "world": ("exact",),
    "alpaca": ("characters",),
}
"""What a task is shown and plotted by; every other metric stands in the full table."""

FORGETTING: Final = ("forget_quality", "forget_truth_ratio", "forget_rouge")
"""Measures of forgetting, the one that TOFU prefers first."""
UTILITY: Final = "model_utility"

_NAMES: Final[Mapping[str, str]] = {
    "nll": "NLL",
    "rouge_l_f1": "ROUGE-L F1",
    "rouge_l_recall": "ROUGE-L recall",
}
_LOWER: Final = (
    *("nll", "bits_per_character", "cut_off"),
    # What a model still says of what it is to forget.
    *("forget_rouge", "forget_probability", "forgotten_fact"),
)
_HIGHER: Final = (
    *("greedy", "rouge_l_f1", "rouge_l_recall", "exact", "fact", "kept_fact"),
    *("model_utility", "forget_quality", "forget_truth_ratio"),
    *("retain_rouge", "retain_probability", "retain_truth_ratio"),
    *("real_authors_rouge", "real_authors_probability", "real_authors_truth_ratio"),
    *("world_facts_rouge", "world_facts_probability", "world_facts_truth_ratio"),
)
LOWER_IS_BETTER: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(_LOWER, True),
    **dict.fromkeys(_HIGHER, False),
    **dict.fromkeys(("characters", "tokens")),  # a reply's length is neither better nor worse
}
"""Of every metric that the commands write; None for one without a better and a worse."""
_NEAREST_CEILING: Final = 0.05
"""In the metric's own unit (nats, shares): below this a gap is a ratio of two noises."""
_NEAREST_CEILINGS: Final[Mapping[str, float]] = {
    "bits_per_character": 0.02,
    # the small world's examination: its fine-tunes are far above the plain models
    **dict.fromkeys(("exact", "fact", "forgotten_fact", "kept_fact"), 0.3),
}


@dataclass(frozen=True, slots=True)
class Gap:
    """One metric of one row between its plain model and its fine-tune, None where unmeasured."""

    row: ResultRow
    metric: str
    plain: float | None
    value: float | None
    """None where the model was measured plain or fine-tuned only."""
    finetuned: float | None
    closed: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """A metric by alpha: for each model (alpha, value) in rising order, and its fine-tune."""

    task: str
    metric: str
    label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    ceilings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Frontier:
    """What one model forgot and kept, a row a point: (row, utility, forgetting)."""

    model: str
    metric: str
    points: Sequence[tuple[ResultRow, float, float]]


def read_rows(results: Sequence[Mapping[str, Any]]) -> list[ResultRow]:
    """The rows of several results documents, in their order; DataError names a row that is none.

    Of rows that measure the same (task, model, arm, adapter, alpha, count, data) the last one
    stays.
    """
    found: dict[tuple[Any, ...], ResultRow] = {}
    for number, result in enumerate(results, 1):
        if result.get("format") != FORMAT:
            raise DataError(
                f"results {number} have the format {result.get('format')!r}, not {FORMAT}: "
                "give the JSON that `cmc-local eval` writes"
            )
        for i, record in enumerate(entries(result, "rows", f"results {number}"), 1):
            row = _row(record, f"results {number}, row {i}")
            of = (row.task, row.model, row.arm, row.adapter, row.alpha, row.count, row.data)
            found[of] = row
    return list(found.values())


def entries(result: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A list in a results document, empty if absent; DataError where it is no list."""
    found = result.get(name)
    if found is not None and not isinstance(found, list):
        raise DataError(f"{where}: '{name}' is not a list: measure it anew")
    return found or []


def is_number(value: Any) -> bool:
    """A finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def gap_table(rows: Sequence[ResultRow]) -> list[Gap]:
    """A Gap for each metric of each row that is neither plain nor fine-tuned.

    Plain and fine-tuned are the rows of the same task, model, count and data; a row of alpha 0
    stands in for a missing plain one, which it equals bit for bit. A model without any other row
    has one Gap for each metric, with no value. Sorted by task, metric and model, in the order met;
    steered rows before their rivals.

    >>> def row(arm, nll): return ResultRow("nll", "large", arm, metrics={"nll": nll})
    >>> gap_table([row("plain", 4.0), row("steered", 3.25), row("finetuned", 3.0)])[0].closed
    0.75
    """
    gaps = []
    for group in _groups(rows).values():
        plain, finetuned = _plain(group), _arm(group, FINETUNED)
        references = [row for row in (plain, finetuned) if row is not None]
        others = [row for row in group if row not in references and not _is_plain(row)]
        for row in others or references[:1]:
            for metric in row.metrics if others else _metrics(references):
                low = _value(plain, metric)
                value = row.metrics.get(metric) if others else None
                top = _value(finetuned, metric)
                gaps.append(Gap(row, metric, low, value, top, gap_closed(metric, low, value, top)))
    tasks, models = _ranks(row.task for row in rows), _ranks(row.model for row in rows)
    metrics = _ranks(gap.metric for gap in gaps)
    return sorted(
        gaps,
        key=lambda gap: (
            *(tasks[gap.row.task], metrics[gap.metric], models[gap.row.model]),
            gap.row.arm != STEERED,
        ),
    )


def main_lines(gaps: Sequence[Gap]) -> list[Gap]:
    """Those of each task's HEADLINES, or else of its first metric; of one adapter's several
    strengths the one nearest to 1, the smaller of two."""
    metrics: dict[str, list[str]] = {}
    for gap in gaps:
        metrics.setdefault(gap.row.task, []).append(gap.metric)
    shown = {task: _headlines(task, of) for task, of in metrics.items()}
    best: dict[tuple[Any, ...], Gap] = {}
    for gap in gaps:
        row = gap.row
        if gap.metric not in shown[row.task]:
            continue
        key = (row.task, gap.metric, row.model, row.label, row.count, row.data)
        if key not in best or _from_one(row) < _from_one(best[key].row):
            best[key] = gap
    return list(best.values())


def known_gaps(gaps: Sequence[Gap]) -> dict[tuple[str, str], list[Gap]]:
    """By (task, metric), those whose share is known."""
    known: dict[tuple[str, str], list[Gap]] = {}
    for gap in gaps:
        if gap.closed is not None:
            known.setdefault((gap.row.task, gap.metric), []).append(gap)
    return known


def sweeps(rows: Sequence[ResultRow]) -> list[Sweep]:
    """One for each task, adapter and headline metric with a model steered at several alphas.

    The plain model is alpha 0. Of a model measured on several counts the largest is drawn.
    """
    tasks = _ranks(row.task for row in rows)
    groups = sorted(_groups(rows).items(), key=lambda item: (tasks[item[0][0]], item[0][2] or 0))
    found: dict[tuple[str, str, str], Sweep] = {}
    for (task, model, *_), group in groups:
        plain, finetuned = _plain(group), _arm(group, FINETUNED)
        steered = [row for row in group if row.arm == STEERED and row.alpha is not None]
        for label in dict.fromkeys(row.label for row in steered):
            mine = [row for row in steered if row.label == label]
            if len(mine) < 2:
                continue
            for metric in _headlines(task, _metrics(mine)):
                at_zero, top = _value(plain, metric), _value(finetuned, metric)
                points = {} if at_zero is None else {0.0: at_zero}
                points |= {r.alpha or 0.0: r.metrics[metric] for r in mine if metric in r.metrics}
                key = (task, label, metric)
                sweep = found.get(key, Sweep(task, metric, label, {}, {}))
                lines = {**sweep.lines, model: sorted(points.items())}
                ceilings = sweep.ceilings if top is None else {**sweep.ceilings, model: top}
                found[key] = Sweep(task, metric, label, lines, ceilings)
    return list(found.values())


def frontiers(rows: Sequence[ResultRow]) -> list[Frontier]:
    """One for each model with two or more TOFU rows that have utility and a measure of forgetting,
    all of the same questions.

    The measure is the first of FORGETTING that any row has; rows without it are left out.
    """
    useful = [row for row in rows if row.task == "tofu" and UTILITY in row.metrics]
    metric = next((m for m in FORGETTING if any(m in row.metrics for row in useful)), None)
    points: dict[_Group, list[tuple[ResultRow, float, float]]] = {}
    for row in useful:
        if metric is not None and metric in row.metrics:
            point = (row, row.metrics[UTILITY], row.metrics[metric])
            points.setdefault(_group(row), []).append(point)
    return [
        Frontier(model, metric or "", sorted(of, key=lambda point: point[0].alpha or 0.0))
        for (_, model, *_), of in points.items()
        if len(of) > 1
    ]


def gap_closed(
    metric: str, plain: float | None, value: float | None, finetuned: float | None
) -> float | None:
    """(value - plain) / (finetuned - plain); None where the ceiling is not clearly better.

    >>> gap_closed("exact", plain=0.0, value=0.6, finetuned=0.8)
    0.75
    """
    lower = lower_is_better(metric)
    if plain is None or value is None or finetuned is None or lower is None:
        return None
    better = plain - finetuned if lower else finetuned - plain
    if better < _NEAREST_CEILINGS.get(metric, _NEAREST_CEILING):
        return None
    return round((value - plain) / (finetuned - plain), 4)


def lower_is_better(metric: str) -> bool | None:
    """None for what is neither better nor worse, and for a metric that is not known."""
    return LOWER_IS_BETTER.get(metric)


def metric_name(metric: str) -> str:
    """As people write it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def measure_name(task: str, metric: str) -> str:
    """The metric, with its task where the metric's own name does not say it."""
    return metric_name(metric) if metric.startswith(task) else f"{task}: {metric_name(metric)}"


def _row(record: Any, where: str) -> ResultRow:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected a JSON object with task, model, arm and metrics")
    for name in ("task", "model", "arm"):
        if not isinstance(record.get(name), str):
            raise DataError(f"{where}: '{name}' is not a text: measure it anew")
    metrics = record.get("metrics")
    if not isinstance(metrics, Mapping):
        raise DataError(f"{where}: 'metrics' is not an object of numbers: measure it anew")
    for name in ("vocabulary", "alpha", "count"):
        if record.get(name) is not None and not is_number(record[name]):
            raise DataError(f"{where}: '{name}' is not a number: measure it anew")
    adapter, command, alpha = (record.get(name) for name in ("adapter", "command", "alpha"))
    data = record.get("data")
    if adapter is None and alpha == 0 and record["arm"] != STEERED:
        alpha = None  # nothing to be of that strength
    return ResultRow(
        task=record["task"],
        model=record["model"],
        arm=record["arm"],
        vocabulary=record.get("vocabulary"),
        adapter=None if adapter is None else str(adapter),
        alpha=alpha,
        count=record.get("count"),
        data=None if data is None else str(data),
        command=None if command is None else str(command),
        metrics={str(name): float(value) for name, value in metrics.items() if is_number(value)},
    )


_Group = tuple[str, str, int | None, str | None]


def _groups(rows: Sequence[ResultRow]) -> dict[_Group, list[ResultRow]]:
    groups: dict[_Group, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    return groups


def _group(row: ResultRow) -> _Group:
    """Task, model, count and data: rows that share them can be compared."""
    return row.task, row.model, row.count, row.data


def _is_plain(row: ResultRow) -> bool:
    return row.arm == PLAIN or (row.arm == STEERED and row.alpha == 0)


def _plain(group: Sequence[ResultRow]) -> ResultRow | None:
    return _arm(group, PLAIN) or next((row for row in group if _is_plain(row)), None)


def _arm(group: Sequence[ResultRow], arm: str) -> ResultRow | None:
    return next((row for row in group if row.arm == arm), None)


def _value(row: ResultRow | None, metric: str) -> float | None:
    return None if row is None else row.metrics.get(metric)


def _metrics(rows: Iterable[ResultRow]) -> list[str]:
    return list(dict.fromkeys(metric for row in rows for metric in row.metrics))


def _headlines(task: str, metrics: Sequence[str]) -> list[str]:
    return [m for m in HEADLINES.get(task, ()) if m in metrics] or list(metrics[:1])


def _ranks(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _from_one(row: ResultRow) -> tuple[float, float]:
    alpha = 1.0 if row.alpha is None else row.alpha
    return abs(alpha - 1.0), alpha
