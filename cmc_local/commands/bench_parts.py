"""`cmc-local bench map` and `cmc-local bench align`: two parts of a step, measured alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmc_local import bundled
from cmc_local.commands import completing, options
from cmc_local.commands.map import Base, read_base, read_delta
from cmc_local.errors import DataError, UsageError
from cmc_local.settings import Fallback

if TYPE_CHECKING:
    from cmc_local.text.delta_tokenizer import DeltaTokenizer

CHARACTERS = 4000
"""Of the text that is followed: a long reply."""


def _pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Any number of vocabularies on either side, each with each."""
    for option in (
        options.json_output,
        click.option("--rounds", type=click.IntRange(1), default=5, show_default=True,
                     help="How often each part is timed."),
        click.option("--delta", "deltas", metavar="PATH", multiple=True,
                     shell_complete=completing.file,
                     help="An adapter or a tokenizer.json; repeatable. A bundled one else."),
        click.option("--base", "bases", metavar="FILE", multiple=True,
                     shell_complete=completing.file,
                     help="A GGUF or a tokenizer.json; repeatable. The bundled ones else."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("map")
@_pairs
@click.option("--fallback", type=click.Choice(["first-piece", "none"]), default="first-piece")
def map_command(
    bases: tuple[str, ...],
    deltas: tuple[str, ...],
    rounds: int,
    as_json: bool,
    fallback: Fallback,
) -> None:
    """Measure the token map: made, from the cache, and added at every step."""
    from cmc_local.bench import map as measured

    found = [
        measured.measure(name, base.side.vocabulary, delta_name, delta, fallback, rounds)
        for (name, base), (delta_name, delta) in _each(bases, deltas)
    ]
    _print(measured.as_lines(found), measured.as_json(found), as_json)


@click.command("align")
@_pairs
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="The text that is followed (a bundled one).")  # fmt: skip
@click.option("--characters", type=click.IntRange(1), default=CHARACTERS, show_default=True,
              help="So much of it.")  # fmt: skip
def align_command(
    bases: tuple[str, ...],
    deltas: tuple[str, ...],
    rounds: int,
    as_json: bool,
    text: Path | None,
    characters: int,
) -> None:
    """Measure the alignment: only the tail encoded after each token, or all of the text."""
    from cmc_local.bench import align

    words = _words(text, characters)
    found = []
    for (name, base), (delta_name, delta) in _each(bases, deltas):
        pieces = [base.side.vocabulary.tokens[token] for token in base.encode(words)]
        found.append(align.measure(name, pieces, delta_name, delta, rounds))
    _print(align.as_lines(found), align.as_json(found), as_json)


def _each(
    bases: Iterable[str], deltas: Iterable[str]
) -> Iterator[tuple[tuple[str, Base], tuple[str, DeltaTokenizer]]]:
    """Every pair of a base and a delta, each with its name; read once."""
    own = [(_name(text), read_base(text)) for text in bases or bundled.BASES]
    theirs = [(_name(text), read_delta(text)) for text in deltas or (bundled.DEFAULT_ADAPTER,)]
    return product(own, theirs)


def _name(text: str) -> str:
    """What it is called in the table: a tokenizer.json by its folder, a file without its ending."""
    path = Path(text)
    if path.name == "tokenizer.json" and path.parent.name:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _words(path: Path | None, characters: int) -> str:
    """The beginning of a text file, or of the bundled prose."""
    if path is None:
        from cmc_local.bench import texts

        return texts.sample("prose").text[:characters]
    try:
        found = path.read_text(encoding="utf-8", errors="replace").lstrip()[:characters]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a text file") from error
    if not found:
        raise UsageError(f"{path} is empty: give a text to follow")
    return found


def _print(lines: Iterable[str], rows: list[dict[str, Any]], as_json: bool) -> None:
    """The table first, one line of JSON last."""
    from cmc_local.bench.machine import machine

    if not as_json:
        for line in lines:
            click.echo(line)
        click.echo()
    click.echo(json.dumps({"pairs": rows, "machine": machine()}, ensure_ascii=False))
