"""`cmc-local eval rouge`: how near replies come to held-out answers, plain and steered."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cmc_local.commands import eval_options, eval_rows
from cmc_local.commands.eval_rows import Findings, Task, Values
from cmc_local.evaluate.journal import fingerprint
from cmc_local.evaluate.reply_measures import lengths, rouge_means
from cmc_local.evaluate.results import Strength, spread
from cmc_local.evaluate.rouge import check_installed
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.rows import read_conversations


@click.command("rouge", cls=eval_options.Recorded)
@eval_options.data("Held-out questions and answers, JSON or JSONL.")
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def rouge(setup: eval_options.Setup, data: Path, limit: int | None, sampling: Sampling) -> None:
    """ROUGE-L F1 and recall of replies against held-out answers, and the replies' length."""
    check_installed()
    talks = spread(read_conversations([data]), limit)
    prompts, references = [talk[:-1] for talk in talks], [talk[-1]["content"] for talk in talks]

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        work = eval_rows.writing(model, strength, sampling, setup.base_prompt)
        replies = values("replies", prompts, work)
        return Findings({**rouge_means(references, replies), **lengths(replies)})

    task = Task(
        name="rouge",
        settings={"data": fingerprint(data), "limit": limit, "sampling": asdict(sampling)},
        count=len(talks),
        steps=len(talks),
        measure=measure,
    )
    eval_rows.show(setup, eval_rows.run(setup, task))
