"""`cmc-local eval`: measurements of what adapters change; the bundled small world, for now."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cmc_local import bundled
from cmc_local.commands import options


@click.group()
def command() -> None:
    """Measure what adapters change."""


@command.command()
@click.option("--limit", type=click.IntRange(1), help="Only that many questions of each kind.")
@options.control
@options.json_output
def world(limit: int | None, control: Any, as_json: bool) -> None:
    """Exact answers and right facts of the bundled models, plain and steered."""
    from cmc_local.commands.world_table import print_table, run_examination

    questions = bundled.world("questions.jsonl")
    report = run_examination(questions, limit=limit, control=control, progress=_on_terminal())
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_table(report)


def _on_terminal() -> bool:
    return sys.stderr.isatty()
