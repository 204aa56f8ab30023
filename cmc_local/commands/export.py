"""`cmc-local export`: pack a trained delta into an adapter, verified against PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cmc_local.commands import options
from cmc_local.commands.workshop import import_workshop
from cmc_local.text.prompts import named_form

_PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("checkpoint", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The adapter's folder.")
@click.option("--prompt", help="A form's name (cmc, inst, alpaca, ...), or a text with {query}.")
@click.option("--tokenizer", type=_PATH, help="tokenizer.json, where the checkpoint has none.")
@click.option("--normalization", help="add, normalization or basenormalization.")
@click.option("--alpha", type=float, help="The strength that the adapter proposes (1).")
@click.option("--thinking", nargs=2, metavar="BEGIN END", help="What stands around thoughts.")
@click.option("--turns", type=click.Choice(["all", "last"]), help="What the delta is shown.")
@click.option("--name", help="The adapter's name (default: the checkpoint's).")
@click.option("--license", "license_name", default="", help="For the card, as in apache-2.0.")
@click.option("--context", type=int, help="Tokens of context (default: the checkpoint's).")
@click.option("--template", type=_PATH, help="Template (GGUF or folder), to verify beside it.")
@click.option("--data", type=_PATH, help="Examples to verify on (JSONL); 200 of them are taken.")
@click.option(
    "--precision",
    multiple=True,
    default=("fp32,int8",),
    help="fp32, int8 or fp16, several with commas or repeated (fp32,int8).",
)
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is there.")
@options.json_output
def command(
    checkpoint: Path,
    output: Path,
    prompt: str | None,
    normalization: str | None,
    license_name: str,
    precision: tuple[str, ...],
    thinking: tuple[str, str] | None,
    data: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Pack CHECKPOINT, a folder that `cmc-local train` wrote or any Hugging Face llama delta."""
    workshop = import_workshop("adapter_export")
    choices = workshop.Choices(
        prompt=None if prompt is None else named_form(prompt),
        normalization=None
        if normalization is None
        else workshop.parse_normalization(normalization),
        license=license_name,
        thinking=thinking or (),
        precisions=tuple(name.strip() for name in ",".join(precision).split(",") if name.strip()),
        **given,
    )
    exported = workshop.export(
        checkpoint, output, choices, data=data, report=lambda line: click.echo(line, err=True)
    )
    click.echo(_as_json(exported) if as_json else _as_text(exported))


def _as_json(exported: Any) -> str:
    figures = {f.precision: asdict(f) for f in exported.figures}
    return json.dumps({"adapter": str(exported.adapter.path), "figures": figures}, indent=2)


def _as_text(exported: Any) -> str:
    lines = [
        f"{f.precision:<5}{f.bytes / 1e6:8.1f} MB   largest error {f.error:.1e}   "
        f"KL {f.kl:.1e}   same greedy token {f.agreement:.2%} of {f.positions:,}"
        for f in exported.figures
    ]
    return "\n".join([*lines, f"written: {exported.adapter.path}"])
