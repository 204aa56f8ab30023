"""`cmc-local eval shifts`: how alike several models are moved, and which tokens most."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cmc_local.commands import completing, eval_options, loading, options
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.errors import UsageError
from cmc_local.evaluate import shifts as measured
from cmc_local.evaluate.results import FORMAT, spread
from cmc_local.evaluate.similarity import Shifts, similarities
from cmc_local.files import write_json
from cmc_local.hub import places
from cmc_local.model.steered import SteeredModel
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.rows import Conversation, read_conversations


@dataclass(frozen=True, slots=True)
class Column:
    """A model that its adapters shift, or a plain model and the same one fine-tuned."""

    gguf: Path
    finetuned: Path | None = None


def _pairs(
    _ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> tuple[Column, ...]:
    found = []
    for text in texts:
        plain, _, finetuned = text.partition(",")
        if not (plain.strip() and finetuned.strip()):
            raise UsageError(
                f"--pair {text}: give two GGUF files with a comma between them, the plain model "
                "and the same model fine-tuned, as in --pair plain.gguf,finetuned.gguf"
            )
        found.append(Column(places.gguf_path(plain), places.gguf_path(finetuned)))
    return tuple(found)


@click.command("shifts")
@click.option("--gguf", "-m", "ggufs", metavar="FILE", multiple=True,
              shell_complete=completing.gguf,
              callback=lambda _ctx, _option, texts: tuple(map(places.gguf_path, texts)),
              help="A base model that the adapters shift; repeatable.")  # fmt: skip
@click.option("--pair", "pairs", metavar="PLAIN,FINETUNED", multiple=True, callback=_pairs,
              shell_complete=completing.file,
              help="What fine-tuning shifts: two GGUF files of one model; repeatable.",
              )  # fmt: skip
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
    pairs: tuple[Column, ...],
    adapters: tuple[places.AdapterChoice, ...],
    data: Path,
    limit: int,
    base_prompt: BasePrompt | None,
    output: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """How alike a delta's shifts are on several models, and which tokens it moves most.

    With --pair, how alike fine-tuning shifts models: the logits of each fine-tuned model minus the
    plain one's; an adapter's shift on the first plain model (or on each --gguf) is compared too.

    Cosine over the tokens that two models share, and the Sinkhorn distance between their likeliest
    tokens, at up to 200 places of the answers where a token begins in every model.
    """
    talks = spread(read_conversations([data]), limit)
    columns = _columns(ggufs, pairs, adapters)

    def load(gguf: Path, plain: Path) -> SteeredModel:
        # A pair's adapters do not act, but both models are asked in the adapter's form.
        acting = ModelChoice(gguf=plain, adapters=adapters).acting
        return loading.steered(ModelChoice(gguf=gguf, adapters=acting, **how))

    shared, rows = _measure(columns, talks, load, base_prompt)
    deltas = {name: row for name, row in rows.items() if columns[name].finetuned is None}
    results = {
        "format": FORMAT,
        "shifts": similarities(rows),
        "moved": measured.moved(deltas or rows),
    }
    if output is not None:
        write_json(output, results)
    if as_json:
        click.echo(json.dumps(results))
    elif output is None:
        _print(results, shared)


def _measure(
    columns: Mapping[str, Column],
    talks: Sequence[Conversation],
    load: Callable[[Path, Path], SteeredModel],
    base_prompt: BasePrompt | None,
) -> tuple[int, dict[str, Shifts]]:
    """How many places all models share, and each one's shifts there, one model or pair at a time.

    `load` takes a file, and the plain one whose adapters ask it.
    """
    every = []
    for one in columns.values():
        with load(one.finetuned or one.gguf, one.gguf) as model:
            if one.finetuned is None and not any(model.alphas.values()):
                raise UsageError("no adapter acts: name one with --adapter, its strength not 0")
            every.append(measured.token_places(model, talks, base_prompt))
    places = measured.shared_places(every)
    if not places:
        raise UsageError("the models share no place in these answers: give more of them")
    rows: dict[str, Shifts] = {}
    for name, one in columns.items():
        with load(one.gguf, one.gguf) as model:
            if one.finetuned is None:
                rows[name] = measured.shifts_at(model, talks, places, base_prompt)
            else:
                with load(one.finetuned, one.gguf) as tuned:
                    rows[name] = measured.pair_shifts_at(model, tuned, talks, places, base_prompt)
    return len(places), rows


def _columns(
    ggufs: tuple[Path, ...],
    pairs: tuple[Column, ...],
    adapters: tuple[places.AdapterChoice, ...],
) -> dict[str, Column]:
    """What is compared, by name; an adapter is tried on the first pair's plain model by default."""
    if not (ggufs or pairs):
        raise UsageError("there is no model: give --gguf FILE, or --pair PLAIN,FINETUNED")
    columns: dict[str, Column] = {}
    if adapters and not ggufs:
        ggufs = (pairs[0].gguf,)
    acting = "".join(f" + {one.path.name}" for one in adapters) if pairs else ""
    for gguf in ggufs:
        columns[_name(gguf, columns, acting)] = Column(gguf)
    for pair in pairs:
        columns[_name(pair.finetuned or pair.gguf, columns)] = pair
    return columns


def _name(gguf: Path, taken: dict[str, Any], acting: str = "") -> str:
    """The file's stem; of two files with one stem the second is told by its path."""
    name = gguf.stem + acting
    return name if name not in taken else str(gguf) + acting


def _print(results: dict[str, Any], places: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # not read as markup: a file's name may hold brackets

    console, found = Console(), results["shifts"]
    for kind in ("cosine", "sinkhorn"):
        table = Table(title=f"{kind.capitalize()} of the shifts at {places} places")
        table.add_column("")
        for name in found["models"]:
            table.add_column(Text(name), justify="right")
        for name, row in zip(found["models"], found[kind], strict=True):
            table.add_row(Text(name), *(f"{value:.3f}" for value in row))
        console.print(table)
    ranked = sorted(results["moved"], key=lambda one: one["mean_shift"])
    for title, chosen in (("up", ranked[:-11:-1]), ("down", ranked[:10])):
        shown = ", ".join(f"{one['token']!r} {one['mean_shift']:+.2f}" for one in chosen)
        console.print(f"Most moved {title}: {shown}", markup=False, highlight=False)
