"""`cmc-local eval`: measurements of what adapters change; one file a subcommand.

nll, rouge, tofu, alpaca    a GGUF model and its adapters on held-out data
world                       the bundled models on the small world
report, shifts              what is made of results; how alike models are moved
"""

from __future__ import annotations

import click

from cmc_local.commands.eval_data import alpaca, nll, rouge, tofu
from cmc_local.commands.eval_report import report
from cmc_local.commands.eval_shifts import shifts
from cmc_local.commands.eval_world import world


@click.group()
def command() -> None:
    """Measure what adapters change."""


for one in (nll, rouge, tofu, alpaca, world, report, shifts):
    command.add_command(one)
