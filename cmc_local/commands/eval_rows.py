"""Runs a measurement at each strength: the rows of its results, their journal, table and page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from cmc_local.commands import loading
from cmc_local.commands.eval_options import Setup
from cmc_local.commands.progress import progress
from cmc_local.delta.adapter import SETTINGS_FILE
from cmc_local.errors import AdapterError, UsageError
from cmc_local.evaluate.journal import Journal, Progress, Value, Work, fingerprint, journal_path
from cmc_local.evaluate.reply_measures import answers
from cmc_local.evaluate.results import (
    ResultRow,
    Strength,
    data_key,
    document,
    strengths,
)
from cmc_local.files import write_json
from cmc_local.model.steered import Prompt, SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt

Values = Callable[[str, Sequence[Any], Work[Any]], list[Value]]


@dataclass(frozen=True)
class Findings:
    """What one row says."""

    metrics: Mapping[str, float]
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)


Measure = Callable[[SteeredModel, Strength, Values], Findings]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A measurement, ready to be taken of a model at any strength."""

    name: str
    settings: Mapping[str, Any]
    """What decides its values, beside the model: data and sampling, as JSON."""
    count: int
    """Questions behind a row."""
    steps: int
    """Values behind a row, for the progress bar."""
    measure: Measure


def run(setup: Setup, task: Task, *, writes_results: bool = True) -> list[ResultRow]:
    """A row for each strength; what the journal of `setup.output` holds is not done again.

    `--output` gets the results document, unless the caller writes something else there.
    """
    with (
        Journal(journal_file(setup.output), settings(setup, task)) as journal,
        loading.steered(setup.chosen) as model,
    ):
        every = _strengths(setup, model.alphas)
        rows: list[ResultRow] = []
        with progress(len(every) * task.steps, task.name) as told:
            for strength in every:
                values = partial(kept_values, journal, strength.key, told)
                rows.append(
                    _row(setup, task, strength, model, task.measure(model, strength, values))
                )
                if setup.output is not None and writes_results:
                    write_json(setup.output, document(rows))
    return rows


def show(setup: Setup, rows: Sequence[ResultRow]) -> None:
    """Print the rows, as JSON or as a table, and write the page that was asked for."""
    if setup.html is not None:
        write_html(setup.html, rows, title=f"{rows[0].model}: {rows[0].task}")
    if setup.as_json:
        click.echo(json.dumps(document(rows)))
    else:
        print_rows(rows)


def write_html(path: Path, rows: Sequence[ResultRow], title: str) -> None:
    """The page of these rows."""
    from cmc_local.evaluate.report import write_page

    write_page(path, [document(rows)], title=title)


def writing(
    model: SteeredModel, strength: Strength, sampling: Sampling, base_prompt: BasePrompt | None
) -> Work[Prompt]:
    """What writes a reply to each prompt."""
    alphas = strength.alphas
    return partial(answers, model, sampling=sampling, alphas=alphas, base_prompt=base_prompt)


def print_rows(rows: Sequence[ResultRow]) -> None:
    """The rows as columns on stdout; what does not fit beside each other stands below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # not read as markup: a name may hold brackets

    console = Console()
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    title = f"{rows[0].model}: {rows[0].task} on {rows[0].count:,} questions"
    for part in fitting(rows, names, console.width):
        table = Table(title=Text(title))
        table.add_column("", no_wrap=True)
        for row in part:
            table.add_column(Text(_heading(row)), justify="right")
        for name in names:
            table.add_row(name.replace("_", " "), *(_cell(row, name) for row in part))
        console.print(table)


def fitting(
    rows: Sequence[ResultRow], names: Sequence[str], width: int
) -> Iterator[list[ResultRow]]:
    """The rows in parts whose columns have room beside each other, one column at least."""
    room = width - max(map(len, names), default=0) - 4  # with the borders and a space each side
    part: list[ResultRow] = []
    left = room
    for row in rows:
        lines = (*_heading(row).split("\n"), *(_cell(row, name) for name in names))
        need = max(map(len, lines)) + 3
        if part and need > left:
            yield part
            part, left = [], room
        part.append(row)
        left -= need
    yield part


def _cell(row: ResultRow, name: str) -> str:
    value = row.metrics.get(name)
    return "-" if value is None else f"{value:.4g}"


def _heading(row: ResultRow) -> str:
    if row.adapter is None:
        return row.arm
    return f"{row.arm}\n{row.adapter}" + ("" if row.alpha is None else f" {row.alpha:g}")


def kept_values(
    journal: Journal, row: str, told: Progress, part: str, items: Sequence[Any], work: Work[Any]
) -> list[Value]:
    """The journal's values of a part of a row; without its first three arguments a `Values`."""
    return journal.values(f"{row}: {part}", items, work, told)


def _strengths(setup: Setup, own: Mapping[str, float]) -> list[Strength]:
    """One row at the adapters' own strengths where --arm is given without --alphas."""
    if setup.arm is not None and setup.alphas is None:
        return [Strength(dict(own))]
    return strengths(own, setup.alphas)


def _row(
    setup: Setup, task: Task, strength: Strength, model: SteeredModel, found: Findings
) -> ResultRow:
    return ResultRow(
        task=task.name,
        model=setup.model_name,
        vocabulary=len(model.base.vocabulary),
        arm=setup.arm or _usual_arm(setup, strength),
        adapter=strength.adapter,
        alpha=strength.alpha,
        metrics=found.metrics,
        count=task.count,
        data=data_key(task.settings),
        command=setup.row_command(task.name, strength.given),
        items=found.items,
    )


def _usual_arm(setup: Setup, strength: Strength) -> str:
    """A row's name without --arm: with a LoRA file the base is `lora`, never `plain`."""
    parts = ["lora"] if setup.chosen.loras else []
    if strength.adapter is not None:
        parts.append("steered")
    return "+".join(parts) or "plain"


def journal_file(output: Path | None) -> Path | None:
    """The journal's path; UsageError for results without one, which would be overwritten."""
    if output is None:
        return None
    if output.is_dir():
        raise UsageError(f"{output} is a folder: give --output a file")
    path = journal_path(output)
    if output.exists() and not path.exists():
        raise UsageError(
            f"{output} exists, and there is no {path.name} to go on with: give another --output, "
            "or delete it"
        )
    return path


def settings(setup: Setup, task: Task) -> dict[str, Any]:
    """What the journal's values depend on; strengths are told apart within it."""
    chosen = setup.chosen
    return {
        "task": task.name,
        "model": fingerprint(chosen.gguf),
        "adapters": [_adapter_fingerprint(one.path) for one in chosen.acting],
        "proxies": [
            [fingerprint(one.expert), fingerprint(one.antiexpert), one.prompt]
            for one in chosen.proxies
        ],
        "loras": [[fingerprint(one.path), one.scale] for one in chosen.loras],
        "base_prompt": setup.base_prompt,
        "control": asdict(chosen.control),
        "context": chosen.limits.context,
        **task.settings,
    }


def _adapter_fingerprint(folder: Path) -> dict[str, Any]:
    """That of its settings file, which holds the hashes of all others."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder} is not an adapter folder: give the folder that holds {SETTINGS_FILE}"
        )
    return fingerprint(path)
