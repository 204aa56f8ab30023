"""`cmc-local eval`: measurements of what adapters change, and the page that is made of them.

nll, rouge, tofu, alpaca    a GGUF model and its adapters on held-out data
world                       the bundled models on the small world
report, shifts              what is made of results; how alike models are moved
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmc_local.commands.eval_data import alpaca, nll, rouge, tofu
from cmc_local.commands.eval_shifts import shifts
from cmc_local.commands.eval_world import world
from cmc_local.errors import DataError, UsageError
from cmc_local.evaluate.results import FORMAT, read_results
from cmc_local.text.records import read_records


@click.group()
def command() -> None:
    """Measure what adapters change."""


@click.command("report")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", required=True,
              help="The page to write.")  # fmt: skip
@click.option("--log", "logs", multiple=True, metavar="NAME=LOG",
              help="A training run's log.jsonl, a curve of that name; repeatable.")  # fmt: skip
def report(files: tuple[Path, ...], html: Path, logs: tuple[str, ...]) -> None:
    """Merge results FILES into one self-contained HTML page with tables and plots."""
    from cmc_local.evaluate.report import write_page

    if not files and not logs:
        raise UsageError("there is nothing to show: give results files, or --log NAME=log.jsonl")
    results = [read_results(path) for path in files]
    if logs:
        results.append({"format": FORMAT, "curves": [_curve(text) for text in logs]})
    write_page(html, results)


def _curve(text: str) -> dict[str, Any]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise UsageError(f"--log {text}: give a name and a file, as in --log instruct=log.jsonl")
    return {"name": name, "points": read_log(Path(place))}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training log that have a step; DataError without one."""
    records = read_records(path, "a run's log.jsonl")
    points = [record for _, record in records if "step" in record]
    if not points:
        raise DataError(f"{path} has no line with a step: give a run's log.jsonl")
    return points


for one in (nll, rouge, tofu, alpaca, world, report, shifts):
    command.add_command(one)
