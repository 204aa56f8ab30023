"""`cmc-local eval alpaca`: a model's answers to AlpacaEval's instructions, for its annotators."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cmc_local.commands import eval_options, eval_rows
from cmc_local.commands.eval_rows import Findings, Task, Values
from cmc_local.errors import UsageError
from cmc_local.evaluate.alpaca import outputs, read_instructions
from cmc_local.evaluate.journal import fingerprint
from cmc_local.evaluate.reply_measures import lengths
from cmc_local.evaluate.results import ResultRow, Strength, spread
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling


@click.command("alpaca", cls=eval_options.Recorded)
@eval_options.data("AlpacaEval's instructions, a JSON list.")
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def alpaca(setup: eval_options.Setup, data: Path, limit: int | None, sampling: Sampling) -> None:
    """Answer AlpacaEval's instructions and write its JSON to --output.

    Of several strengths each has a file of its own: OUT.json gives OUT-0.json, OUT-1.json. Hand
    them to alpaca_eval as --model_outputs, the plain one as --reference_outputs.
    """
    if setup.output is None:
        raise UsageError("there is nowhere to write the answers to: give --output FILE")
    entries = spread(read_instructions(data), limit)
    found: list[list[str]] = []

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        work = eval_rows.writing(model, strength, sampling, setup.base_prompt)
        replies = values("replies", [entry["instruction"] for entry in entries], work)
        found.append([one["reply"] for one in replies])
        return Findings(lengths(replies))

    task = Task(
        name="alpaca",
        settings={"data": fingerprint(data), "limit": limit, "sampling": asdict(sampling)},
        count=len(entries),
        steps=len(entries),
        measure=measure,
        writes_results=False,
    )
    rows = eval_rows.run(setup, task)
    for row, replies in zip(rows, found, strict=True):
        answered = zip(entries, replies, strict=True)
        path = setup.output if len(rows) == 1 else _beside(setup.output, row)
        write_json(path, outputs(answered, _generator(row)))
    eval_rows.show(setup, rows)


def _beside(output: Path, row: ResultRow) -> Path:
    strength = "own" if row.alpha is None else f"{row.alpha:.12g}"
    return output.with_name(f"{output.stem}-{strength}{output.suffix}")


def _generator(row: ResultRow) -> str:
    """What AlpacaEval calls the model: `other`, `other+instruct@0.5`."""
    if row.adapter is None:
        return row.model
    return f"{row.model}+{row.adapter}" + ("" if row.alpha is None else f"@{row.alpha:g}")
