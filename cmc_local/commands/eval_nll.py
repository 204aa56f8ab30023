"""`cmc-local eval nll`: how likely held-out answers are, plain and steered."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from cmc_local.commands import eval_options, eval_rows
from cmc_local.commands.eval_rows import Findings, Task, Values
from cmc_local.evaluate.journal import fingerprint
from cmc_local.evaluate.nll import answer_scores, nll_means
from cmc_local.evaluate.results import Strength, spread
from cmc_local.model.steered import SteeredModel
from cmc_local.text.rows import read_conversations


@click.command("nll", cls=eval_options.Recorded)
@eval_options.data("Held-out questions and answers, JSON or JSONL.")
@eval_options.limit
@eval_options.measured
def nll(setup: eval_options.Setup, data: Path, limit: int | None) -> None:
    """Nats per token and bits per character of held-out answers, and the share of greedy tokens.

    Bits per character compare models of different vocabularies.
    """
    talks = spread(read_conversations([data]), limit)

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        work = partial(answer_scores, model, alphas=strength.alphas, base_prompt=setup.base_prompt)
        return Findings(nll_means(values("answers", talks, work)))

    task = Task(
        name="nll",
        settings={"data": fingerprint(data), "limit": limit},
        count=len(talks),
        steps=len(talks),
        measure=measure,
    )
    eval_rows.show(setup, eval_rows.run(setup, task))
