"""`cmc-local eval nll`, `rouge`, `tofu` and `alpaca`: a model and its adapters on held-out data."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from cmc_local.commands import eval_options, eval_rows
from cmc_local.commands.eval_options import Recorded, Setup
from cmc_local.commands.eval_rows import Findings, Measure, Task, Values
from cmc_local.errors import UsageError
from cmc_local.evaluate import tofu_run
from cmc_local.evaluate.alpaca import outputs, read_instructions
from cmc_local.evaluate.journal import fingerprint
from cmc_local.evaluate.nll import answer_scores, nll_means
from cmc_local.evaluate.reply_measures import lengths, rouge_means
from cmc_local.evaluate.results import ResultRow, Strength, forget_ratios, spread
from cmc_local.evaluate.rouge import check_installed
from cmc_local.evaluate.tofu import check_comparable, forget_quality
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.rows import read_conversations

ANSWERS = "Held-out questions and answers, JSON or JSONL."


@click.command("nll", cls=Recorded)
@eval_options.data(ANSWERS)
@eval_options.limit
@eval_options.measured
def nll(setup: Setup, data: Path, limit: int | None) -> None:
    """Nats per token and bits per character of held-out answers, and the share of greedy tokens.

    Bits per character compare models of different vocabularies.
    """
    talks = spread(read_conversations([data]), limit)

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        work = partial(answer_scores, model, alphas=strength.alphas, base_prompt=setup.base_prompt)
        return Findings(nll_means(values("answers", talks, work)))

    task = _task("nll", fingerprint(data), limit, len(talks), measure)
    eval_rows.show(setup, eval_rows.run(setup, task))


@click.command("rouge", cls=Recorded)
@eval_options.data(ANSWERS)
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def rouge(setup: Setup, data: Path, limit: int | None, sampling: Sampling) -> None:
    """ROUGE-L F1 and recall of replies against held-out answers, and the replies' length."""
    check_installed()
    talks = spread(read_conversations([data]), limit)
    prompts, references = [talk[:-1] for talk in talks], [talk[-1]["content"] for talk in talks]

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        work = eval_rows.writing(model, strength, sampling, setup.base_prompt)
        replies = values("replies", prompts, work)
        return Findings({**rouge_means(references, replies), **lengths(replies)})

    task = _task("rouge", fingerprint(data), limit, len(talks), measure, sampling)
    eval_rows.show(setup, eval_rows.run(setup, task))


@click.command("tofu", cls=Recorded)
@click.option("--tofu", "folder", type=click.Path(path_type=Path), metavar="FOLDER", required=True,
              help="Where TOFU's JSON files lie.")  # fmt: skip
@click.option("--forget", type=click.Choice(["01", "05", "10"]), required=True,
              help="The forget set: 1, 5 or 10 % of the authors.")  # fmt: skip
@click.option("--retrained", type=click.Path(path_type=Path), metavar="RESULTS",
              help="Results of a model trained without the forget set: gives the forget quality.",
              )  # fmt: skip
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def tofu(
    setup: Setup,
    folder: Path,
    forget: tofu_run.Forget,
    retrained: Path | None,
    limit: int | None,
    sampling: Sampling,
) -> None:
    """ROUGE-L recall, probability and truth ratio on TOFU's sets, model utility, forget quality.

    Measure the model that never saw the forget set first, with --arm retrained, and give its
    results as --retrained.
    """
    check_installed()
    sets = tofu_run.read_sets(folder, forget, limit)
    split = f"forget{forget}"
    reference = None if retrained is None else forget_ratios(retrained, split)
    if reference is not None:
        check_comparable(len(sets["forget"]), reference)

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        found = tofu_run.tofu_measures(
            model, sets, sampling, values, alphas=strength.alphas, base_prompt=setup.base_prompt
        )
        ratios = found["forget"].truth_ratio
        quality = {} if reference is None else {"forget_quality": forget_quality(ratios, reference)}
        return Findings({**quality, **tofu_run.tofu_metrics(found)}, {split: ratios})

    files = {name: fingerprint(tofu_run.set_file(folder, name, forget)) for name in sets}
    count, steps = sum(map(len, sets.values())), tofu_run.count_values(sets)
    task = _task("tofu", files, limit, count, measure, sampling, steps=steps)
    eval_rows.show(setup, eval_rows.run(setup, task))


@click.command("alpaca", cls=Recorded)
@eval_options.data("AlpacaEval's instructions, a JSON list.")
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def alpaca(setup: Setup, data: Path, limit: int | None, sampling: Sampling) -> None:
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

    task = _task("alpaca", fingerprint(data), limit, len(entries), measure, sampling)
    rows = eval_rows.run(setup, task, writes_results=False)
    for row, replies in zip(rows, found, strict=True):
        answered = zip(entries, replies, strict=True)
        path = setup.output if len(rows) == 1 else _beside(setup.output, row)
        write_json(path, outputs(answered, _generator(row)))
    eval_rows.show(setup, rows)


def _beside(output: Path, row: ResultRow) -> Path:
    """Where one row's answers go, by its strength."""
    strength = "own" if row.alpha is None else f"{row.alpha:.12g}"
    return output.with_name(f"{output.stem}-{strength}{output.suffix}")


def _generator(row: ResultRow) -> str:
    """What AlpacaEval calls the model: `other`, `other+instruct@0.5`."""
    if row.adapter is None:
        return row.model
    return f"{row.model}+{row.adapter}" + ("" if row.alpha is None else f"@{row.alpha:g}")


def _task(
    name: str,
    data: Any,
    limit: int | None,
    count: int,
    measure: Measure,
    sampling: Sampling | None = None,
    *,
    steps: int | None = None,
) -> Task:
    """A task whose values depend on the data, how much of it is taken, and the sampling."""
    settings = {"data": data, "limit": limit}
    if sampling is not None:
        settings["sampling"] = asdict(sampling)
    return Task(name=name, settings=settings, count=count, steps=steps or count, measure=measure)
