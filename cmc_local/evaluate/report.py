"""Results of `cmc-local eval` as one self-contained HTML page.

    results documents --> report_gaps (numbers) --> report_plots (SVG)
                                  `------------------> sections --> report_html --> page

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeGuard

from cmc_local import __version__
from cmc_local.errors import DataError
from cmc_local.evaluate import report_gaps, report_html, report_plots
from cmc_local.evaluate.report_gaps import Gap, Row, entries, is_number
from cmc_local.evaluate.report_html import Markup
from cmc_local.files import write_text

MOST_MOVED: Final = 15
"""Tokens shown of each direction."""
_TABLE_HEAD: Final = (
    *("model", "tokens#", "arm", "alpha#", "plain#", "value#", "fine-tuned#"),
    *("gap closed#", "examples#"),
)
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
    sections = [part for part in _sections(rows, results) if part is not None]
    if not sections:
        raise DataError("the results hold nothing to show: measure something first")
    models = list(dict.fromkeys(row.model for row in rows))
    lead = f"{len(rows)} measured rows of {len(models)} models." if rows else ""
    write_text(path, report_html.page(title, lead, sections, f"Made by cmc-local {__version__}."))


def _sections(rows: list[Row], results: Sequence[Mapping[str, Any]]) -> Iterator[Markup | None]:
    gaps = report_gaps.gap_table(rows)
    yield _main_table(gaps)
    yield _bars(report_gaps.main_lines(gaps))
    yield _sweep(rows)
    yield _frontier(rows)
    for number, result in enumerate(results, 1):
        yield _shifts(result.get("shifts"), f"results {number}, shifts")
    for number, result in enumerate(results, 1):
        where = f"results {number}"
        yield _moved(entries(result, "moved", where), f"{where}, moved")
    yield _curves(results)
    yield _commands(rows)


def _main_table(gaps: list[Gap]) -> Markup | None:
    if not gaps:
        return None
    main = report_gaps.main_lines(gaps)
    parts = [_gap_table(main)]
    if len(main) < len(gaps):
        parts.append(report_html.fold("Every metric and strength", _gap_table(gaps)))
    return report_html.section(
        "How much of a fine-tune",
        "Gap closed is (value - plain) / (fine-tuned - plain), on the same held-out data: 0"
        " is the plain model, 1 the model's own fine-tune. No figure stands where one of the two"
        " was not measured, or the fine-tune is hardly better than plain. Of several strengths the"
        " one nearest to 1 is shown.",
        *parts,
    )


def _gap_table(gaps: Sequence[Gap]) -> Markup:
    lines: list[Sequence[Markup] | str] = []
    group = None
    for gap in gaps:
        row = gap.row
        if group != (row.task, gap.metric):
            group = (row.task, gap.metric)
            name = report_gaps.measure_name(row.task, gap.metric)
            lines.append(name + _BETTER[report_gaps.lower_is_better(gap.metric)])
        lines.append(
            (
                report_html.heading_cell(row.model),
                report_html.number_cell(_whole(row.vocabulary)),
                report_html.cell("-" if gap.value is None else row.label),
                report_html.number_cell("-" if row.alpha is None else f"{row.alpha:g}"),
                report_html.number_cell(_shown(gap.plain)),
                report_html.number_cell(_shown(gap.value)),
                report_html.number_cell(_shown(gap.finetuned)),
                report_html.number_cell(
                    "-" if gap.closed is None else f"{gap.closed:.2f}", strong=True
                ),
                report_html.number_cell(_whole(row.count)),
            )
        )
    return report_html.table(_TABLE_HEAD, lines)


def _bars(gaps: Sequence[Gap]) -> Markup | None:
    panels = report_gaps.known_gaps(gaps)
    if not panels:
        return None
    return report_html.section(
        "Gap closed, model by model",
        "The dashed line is the model's own fine-tune. Bars end at -1 and 1.5; the numbers do not.",
        report_html.figure(report_plots.gap_bars(panels), "Bars of the gap closed in the table"),
    )


def _sweep(rows: Sequence[Row]) -> Markup | None:
    found = report_gaps.sweeps(rows)
    if not found:
        return None
    return report_html.section(
        "Strength",
        "Each model by alpha; alpha 0 is the plain model. Dotted: that model's own fine-tune.",
        report_html.figure(report_plots.alpha_sweeps(found), "Lines of the metrics by alpha"),
    )


def _frontier(rows: Sequence[Row]) -> Markup | None:
    found = report_gaps.frontiers(rows)
    if not found:
        return None
    lead = "What a model is still good for against what it has forgotten; numbers are alphas."
    if any(y < report_plots.SMALLEST_P for one in found for _, _, y in one.points):
        lead += f" p-values below {report_plots.SMALLEST_P:.0e} are drawn there."
    return report_html.section(
        "Forget against retain",
        lead,
        report_html.figure(report_plots.frontier_plot(found), "Forgetting by model utility"),
    )


def _shifts(record: Any, where: str) -> Markup | None:
    if not record:
        return None
    if not isinstance(record, Mapping) or not isinstance(record.get("models"), list):
        raise DataError(f"{where}: expected an object with models, cosine and sinkhorn")
    names = [str(name) for name in record["models"]]
    blocks = []
    for key, name in (("cosine", "Cosine"), ("sinkhorn", "Sinkhorn distance")):
        values = record.get(key)
        if not _is_square(values, len(names)):
            raise DataError(f"{where}: '{key}' is not {len(names)} rows of {len(names)} numbers")
        blocks.append((name, report_html.heat_map(names, values)))
    return report_html.section(
        "How alike the shifts of different models are",
        "Cosine over the tokens that both models have: 1 is the same direction. Sinkhorn distance:"
        " what it costs to move one shift's likely tokens to the other's, by their spelling: 0 is"
        " the same, 1 nothing in common.",
        report_html.side_by_side(*blocks),
    )


def _moved(records: list[Any], where: str) -> Markup | None:
    if not records:
        return None
    if not all(
        isinstance(one, Mapping)
        and isinstance(one.get("token"), str)
        and is_number(one.get("mean_shift"))
        and is_number(one.get("count"))
        for one in records
    ):
        raise DataError(f"{where}: expected objects with token, mean_shift and count")
    ranked = sorted(records, key=lambda one: one["mean_shift"])
    up = [one for one in reversed(ranked) if one["mean_shift"] > 0][:MOST_MOVED]
    down = [one for one in ranked if one["mean_shift"] < 0][:MOST_MOVED]
    blocks = []
    for name, chosen in (("Up", up), ("Down", down)):
        lines = [
            (
                report_html.code_cell(_spelled(one["token"])),
                report_html.number_cell(f"{one['mean_shift']:+.2f}"),
                report_html.number_cell(_whole(one["count"])),
            )
            for one in chosen
        ]
        if lines:
            blocks.append((name, report_html.table(("token", "mean shift#", "times#"), lines)))
    return report_html.section(
        "Tokens moved most",
        "The mean shift of a token's logit, and at how many places it was taken; ␣ is a space.",
        report_html.side_by_side(*blocks),
    )


def _curves(results: Sequence[Mapping[str, Any]]) -> Markup | None:
    curves: list[report_plots.Curve] = []
    for number, result in enumerate(results, 1):
        where = f"results {number}, curves"
        for record in entries(result, "curves", f"results {number}"):
            if not isinstance(record, Mapping) or not isinstance(record.get("points"), list):
                raise DataError(f"{where}: expected objects with a name and points")
            curves.append((str(record.get("name")), [_point(p, where) for p in record["points"]]))
    if not curves:
        return None
    return report_html.section(
        "Training",
        "Loss by step, from each run's log.",
        report_html.figure(report_plots.training_curves(curves), "Lines of the loss by step"),
    )


def _point(record: Any, where: str) -> dict[str, float]:
    """A point's numbers; a line of log.jsonl calls the held-out loss `eval_loss`."""
    if not isinstance(record, Mapping) or not is_number(record.get("step")):
        raise DataError(f"{where}: a point has no step")
    numbers = {name: float(value) for name, value in record.items() if is_number(value)}
    if "eval_loss" in numbers:
        numbers.setdefault("held_out_loss", numbers["eval_loss"])
    return numbers


def _commands(rows: Sequence[Row]) -> Markup | None:
    made: dict[str, list[str]] = {}
    for row in rows:
        alpha = "" if row.alpha is None else f", alpha {row.alpha:g}"
        made.setdefault(row.command or "", []).append(
            f"{row.task}: {row.model}, {row.label}{alpha}"
        )
    if not made:
        return None
    lines = [
        (report_html.code_cell(command or "not recorded", wrap=True), report_html.lines_cell(of))
        for command, of in made.items()
    ]
    return report_html.section(
        "How each row was made",
        "The command on the left measured the rows on the right.",
        report_html.table(("command", "rows"), lines),
    )


def _is_square(values: Any, size: int) -> TypeGuard[list[list[float]]]:
    return (
        isinstance(values, list)
        and len(values) == size
        and all(
            isinstance(row, list) and len(row) == size and all(is_number(x) for x in row)
            for row in values
        )
    )


def _shown(value: float | None) -> str:
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
