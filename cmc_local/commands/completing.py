"""Tab in a shell: the names that stand where a file could.

    eval "$(_CMC_LOCAL_COMPLETE=bash_source cmc-local)"       bash; zsh likewise, with zsh_source
    _CMC_LOCAL_COMPLETE=fish_source cmc-local | source        fish

The shell asks the program, which answers with names of its own, or lets the shell look for files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from cmc_local import bundled, real_models


def gguf(
    _ctx: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Models known by name, and GGUF files, for `shell_complete=` of `--gguf`."""
    return _names_or_files((*bundled.BASES, *real_models.NAMES), incomplete, "file")


def adapter(
    _ctx: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Bundled adapters and folders, for `shell_complete=` of `--adapter`."""
    return _names_or_files(bundled.ADAPTERS, incomplete, "dir")


def place(
    _ctx: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Base models, adapters and files, where either may be named."""
    return _names_or_files(
        (*bundled.BASES, *real_models.NAMES, *bundled.ADAPTERS), incomplete, "file"
    )


def file(
    _ctx: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Files alone. click has no such hint for a plain text, and then bash offers nothing."""
    return [CompletionItem(incomplete, type="file")]


def folder(
    _ctx: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Folders alone."""
    return [CompletionItem(incomplete, type="dir")]


def _names_or_files(names: Sequence[str], incomplete: str, kind: str) -> list[CompletionItem[str]]:
    """The names that begin so beside what lies here; where none does, the shell's own look.

    A shell's look would take the place of the names: bash does one or the other.
    """
    fitting = [
        CompletionItem(name, help="known by name") for name in names if name.startswith(incomplete)
    ]
    if not fitting:
        return [CompletionItem(incomplete, type=kind)]
    try:
        here = sorted(entry for entry in os.listdir() if entry.startswith(incomplete))
    except OSError:
        here = []
    folders = [CompletionItem(f"{entry}/") for entry in here if Path(entry).is_dir()]
    files = [CompletionItem(entry) for entry in here if kind == "file" and entry.endswith(".gguf")]
    return [*fitting, *folders, *files]
