"""Results of `cmc-local eval` as one self-contained HTML page.

    results documents --> report_gaps (numbers) --> report_plots (SVG)
                                  `------> what is shown --> templates/report.html --> page

A results document, as the commands write it (JSON):

    {"format": 1,
     "rows": [{"task": "nll", "model": "large", "vocabulary": 8000, "arm": "steered",
               "adapter": "instruct", "alpha": 1.0, "metrics": {"nll": 4.31}, "count": 300,
               "data": "5f1c...", "command": "cmc-local eval nll ..."}],
     "curves": [{"name": "instruct", "points": [{"step": 10, "loss": 2.1}]}],
     "shifts": {"models": ["a", "b"], "cosine": [[...]], "sinkhorn": [[...]]},
     "moved": [{"token": " the", "mean_shift": 1.3, "count": 40}]}

A section without data is left out. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from cmc_local.errors import DataError
from cmc_local.evaluate import report_gaps, report_plots
from cmc_local.evaluate.html_pages import render
from cmc_local.evaluate.report_gaps import Gap, entries, is_number
from cmc_local.evaluate.results import ResultRow
from cmc_local.files import write_text

Data = TypeVar("Data")

MOST_MOVED: Final = 15
"""Tokens shown of each direction."""
_BETTER: Final = {True: " (lower is better)", False: " (higher is better)", None: ""}


def write_page(
    path: Path, results: Sequence[Mapping[str, Any]], title: str = "What steering changes"
) -> None:
    """Write the page of several results documents, whole or not at all.

    DataError names a part of a document that is not as it must be, or says that there is nothing to
    show; InputError if the file cannot be written; MissingExtra without matplotlib.
    """
    # JSON can hold half a character, which no file and no font can.
    whole = json.dumps(list(results), ensure_ascii=False).encode("utf-8", "replace")
    results = json.loads(whole)
    rows = report_gaps.read_rows(results)
    shown = _shown(rows, results)
    if not any(shown.values()):
        raise DataError("the results hold nothing to show: measure something first")
    models = {row.model for row in rows}
    lead = f"{len(rows)} measured rows of {len(models)} models." if rows else ""
    write_text(path, render("report.html", title=title, lead=lead, **shown))


def _shown(rows: list[ResultRow], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the template shows, by its names there; what there is no data for is empty."""
    gaps = report_gaps.gap_table(rows)
    main = report_gaps.main_lines(gaps)
    frontiers = report_gaps.frontiers(rows)
    lowest = min((y for one in frontiers for *_, y in one.points), default=1)
    floor = report_plots.SMALLEST_P
    numbered = [(one, f"results {number}") for number, one in enumerate(results, 1)]
    shifts = [_shifts(one.get("shifts"), f"{where}, shifts") for one, where in numbered]
    moved = [_moved(one, where) for one, where in numbered]
    return {
        "main_gaps": _gap_lines(main),
        "all_gaps": _gap_lines(gaps),
        "bars": _drawn(report_plots.gap_bars, report_gaps.known_gaps(main)),
        "sweeps": _drawn(report_plots.alpha_sweeps, report_gaps.sweeps(rows)),
        "frontiers": _drawn(report_plots.frontier_plot, frontiers),
        "curves": _drawn(report_plots.training_curves, _curves(results)),
        "p_floor": f"{floor:.0e}" if lowest < floor else "",
        "shifts": [one for one in shifts if one],
        "moved": [one for one in moved if one],
        "commands": _commands(rows),
    }


def _drawn(draw: Callable[[Data], str], data: Data) -> str:
    return draw(data) if data else ""


def _gap_lines(gaps: Sequence[Gap]) -> list[tuple[str, ...] | str]:
    lines: list[tuple[str, ...] | str] = []
    group = None
    for gap in gaps:
        row = gap.row
        if group != (row.task, gap.metric):
            group = (row.task, gap.metric)
            name = report_gaps.measure_name(row.task, gap.metric)
            lines.append(name + _BETTER[report_gaps.lower_is_better(gap.metric)])
        lines.append(
            (
                row.model,
                _whole(row.vocabulary),
                "-" if gap.value is None else row.label,
                "-" if row.alpha is None else f"{row.alpha:g}",
                *map(_decimals, (gap.plain, gap.value, gap.finetuned)),
                "-" if gap.closed is None else f"{gap.closed:.2f}",
                _whole(row.count),
            )
        )
    return lines


def _shifts(record: Any, where: str) -> Mapping[str, Any]:
    """{"models": names, "cosine": rows, "sinkhorn": rows}, checked."""
    if not record:
        return {}
    if not isinstance(record, Mapping) or not isinstance(record.get("models"), list):
        raise DataError(f"{where}: expected an object with models, cosine and sinkhorn")
    count = len(record["models"])
    for key in ("cosine", "sinkhorn"):
        if not _is_square(record.get(key), count):
            raise DataError(f"{where}: '{key}' is not {count} rows of {count} numbers")
    return record


def _moved(result: Mapping[str, Any], where: str) -> dict[str, list[tuple[str, str, str]]]:
    """The tokens moved most, up and down: (token, mean shift, times)."""
    records = entries(result, "moved", where)
    if not all(
        isinstance(one, Mapping)
        and isinstance(one.get("token"), str)
        and is_number(one.get("mean_shift"))
        and is_number(one.get("count"))
        for one in records
    ):
        raise DataError(f"{where}, moved: expected objects with token, mean_shift and count")
    ranked = sorted(records, key=lambda one: one["mean_shift"])
    up = [one for one in reversed(ranked) if one["mean_shift"] > 0]
    down = [one for one in ranked if one["mean_shift"] < 0]
    return {
        name: [
            (_spelled(one["token"]), f"{one['mean_shift']:+.2f}", _whole(one["count"]))
            for one in chosen[:MOST_MOVED]
        ]
        for name, chosen in (("Up", up), ("Down", down))
        if records
    }


def _curves(results: Sequence[Mapping[str, Any]]) -> list[report_plots.Curve]:
    curves: list[report_plots.Curve] = []
    for number, result in enumerate(results, 1):
        where = f"results {number}, curves"
        for record in entries(result, "curves", f"results {number}"):
            if not isinstance(record, Mapping) or not isinstance(record.get("points"), list):
                raise DataError(f"{where}: expected objects with a name and points")
            curves.append((str(record.get("name")), [_point(p, where) for p in record["points"]]))
    return curves


def _point(record: Any, where: str) -> dict[str, float]:
    """A point's numbers; a line of log.jsonl calls the held-out loss `eval_loss`."""
    if not isinstance(record, Mapping) or not is_number(record.get("step")):
        raise DataError(f"{where}: a point has no step")
    numbers = {name: float(value) for name, value in record.items() if is_number(value)}
    if "eval_loss" in numbers:
        numbers.setdefault("held_out_loss", numbers["eval_loss"])
    return numbers


def _commands(rows: Sequence[ResultRow]) -> dict[str, list[str]]:
    """The rows that each command measured."""
    made: dict[str, list[str]] = {}
    for row in rows:
        alpha = "" if row.alpha is None else f", alpha {row.alpha:g}"
        line = f"{row.task}: {row.model}, {row.label}{alpha}"
        made.setdefault(row.command or "not recorded", []).append(line)
    return made


def _is_square(values: Any, size: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == size
        and all(
            isinstance(row, list) and len(row) == size and all(is_number(x) for x in row)
            for row in values
        )
    )


def _decimals(value: float | None) -> str:
    """Three decimals, or a power of ten for what they would hide."""
    if value is None:
        return "-"
    return f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _spelled(token: str) -> str:
    """With its spaces, line ends and the like made visible."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
    return visible.replace(" ", "␣")
