"""A hook of the site's build: each command of `cmc-local` by the name that is typed.

Their modules all call it `command`, and mkdocs-click prints what a command is called there.
"""

from __future__ import annotations

from typing import Any

import click

from cmc_local.commands import main


def on_startup(**_: Any) -> None:
    """Give every command its name before a page is made."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        command.name = name
