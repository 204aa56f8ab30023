"""`cmc-local eval world`: the bundled models on the small world."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cmc_local import bundled
from cmc_local.commands import options


@click.command()
@click.option("--limit", type=click.IntRange(1), help="Only that many questions of each kind.")
@options.control
@options.json_output
def world(limit: int | None, control: Any, as_json: bool) -> None:
    """Exact answers and right facts of the bundled models, plain and steered."""
    from cmc_local.commands.world_table import print_table, run_examination

    questions = bundled.world("questions.jsonl")
    report = run_examination(questions, limit=limit, control=control, progress=sys.stderr.isatty())
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_table(report)
