"""`cmc-local eval shifts`: how alike several models are moved, and which tokens most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cmc_local.commands import eval_options, loading, options
from cmc_local.conversation import BasePrompt
from cmc_local.conversations import read_conversations
from cmc_local.errors import UsageError
from cmc_local.evaluate import shifts as measured
from cmc_local.evaluate.results import FORMAT, spread
from cmc_local.evaluate.similarity import Shifts, similarities
from cmc_local.evaluate.whole_file import write_json
from cmc_local.settings import Control, Limits
from cmc_local.steered import SteeredModel


@click.command("shifts")
@click.option("--gguf", "-m", "ggufs", metavar="FILE", multiple=True, required=True,
              callback=lambda _ctx, _option, texts: tuple(map(options.gguf_path, texts)),
              help="A base model; repeatable.")  # fmt: skip
@options.adapters
@eval_options.data("Answers whose places are looked at, JSON or JSONL.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True,
              help="Only that many answers, evenly spread over the data.")  # fmt: skip
@options.base_prompt
@options.control
@options.limits
@options.devices
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the figures there, for `cmc-local eval report`.")  # fmt: skip
@options.json_output
def shifts(
    ggufs: tuple[Path, ...],
    adapters: tuple[options.AdapterChoice, ...],
    data: Path,
    limit: int,
    base_prompt: BasePrompt | None,
    control: Control,
    limits: Limits,
    devices: options.Devices,
    output: Path | None,
    as_json: bool,
) -> None:
    """How alike a delta's shifts are on several models, and which tokens it moves most.

    Cosine over the tokens that two models share, and the Sinkhorn distance between their likeliest
    tokens, at up to 200 places of the answers where a token begins in every model.
    """
    talks = spread(read_conversations([data]), limit)

    @contextmanager
    def loaded(gguf: Path) -> Iterator[SteeredModel]:
        with loading.steered(
            gguf, adapters, control=control, limits=limits, devices=devices, profile=False
        ) as model:
            if not any(model.alphas.values()):
                raise UsageError("no adapter moves anything: name one with --adapter")
            yield model

    every = []
    for gguf in ggufs:
        with loaded(gguf) as model:
            every.append(measured.token_places(model, talks, base_prompt))
    places = measured.shared_places(every)
    if not places:
        raise UsageError("the models share no place in these answers: give more of them")
    rows: dict[str, Shifts] = {}
    for gguf in ggufs:
        with loaded(gguf) as model:
            rows[_name(gguf, rows)] = measured.shifts_at(model, talks, places, base_prompt)
    results = {"format": FORMAT, "shifts": similarities(rows), "moved": measured.moved(rows)}
    if output is not None:
        write_json(output, results)
    if as_json:
        click.echo(json.dumps(results))
    elif output is None:
        _print(results, len(places))


def _name(gguf: Path, taken: dict[str, Any]) -> str:
    """The file's stem; of two files with one stem the second is told by its path."""
    return gguf.stem if gguf.stem not in taken else str(gguf)


def _print(results: dict[str, Any], places: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console, found = Console(), results["shifts"]
    for kind in ("cosine", "sinkhorn"):
        table = Table(title=f"{kind.capitalize()} of the shifts at {places} places")
        table.add_column("")
        for name in found["models"]:
            table.add_column(name, justify="right")
        for name, row in zip(found["models"], found[kind], strict=True):
            table.add_row(name, *(f"{value:.3f}" for value in row))
        console.print(table)
    ranked = sorted(results["moved"], key=lambda one: one["mean_shift"])
    for title, chosen in (("up", ranked[:-11:-1]), ("down", ranked[:10])):
        shown = ", ".join(f"{one['token']!r} {one['mean_shift']:+.2f}" for one in chosen)
        console.print(f"Most moved {title}: {shown}", markup=False, highlight=False)
