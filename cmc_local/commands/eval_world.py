"""`cmc-local eval world`: a model, or the bundled three, on the small world's questions."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Final

import click
from click.core import ParameterSource

from cmc_local import bundled
from cmc_local.commands import eval_options, eval_rows, world_table
from cmc_local.commands.eval_rows import Task
from cmc_local.errors import UsageError
from cmc_local.evaluate.journal import Journal, fingerprint
from cmc_local.evaluate.results import ResultRow, data_key, document
from cmc_local.evaluate.world import PARTS, Examination, Part, examination, read_questions
from cmc_local.files import write_json

_OF_ONE_MODEL: Final = {
    "adapters": "--adapter",
    "proxies": "--proxy",
    "loras": "--lora",
    "alphas": "--alphas",
    "base_prompt": "--base-prompt",
    "name": "--name",
    "arm": "--arm",
}
"""Options that need --gguf: the bundled three are all measured in one way."""


@click.command("world", cls=eval_options.Recorded)
@click.option("--part", type=click.Choice(PARTS), default="test", show_default=True,
              help="Whose authors are asked about.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Only that many questions of each kind.")
@eval_options.measured
def world(setup: eval_options.Setup, part: Part, limit: int | None) -> None:
    """Exact answers and right facts on the small world's authors, and on the forgotten ones.

    Without --gguf the bundled models, plain, steered and fine-tuned. A model that was fine-tuned in
    an adapter's prompt form is asked in it by --adapter A --alphas 0 --arm finetuned.
    """
    questions = bundled.world("questions.jsonl")
    what = examination(read_questions(questions), limit, part)
    task = Task(
        name="world",
        settings={"data": fingerprint(questions), "part": part, "limit": limit},
        count=len(what.test),
        steps=what.count,
        measure=partial(world_table.measure, what, base_prompt=setup.base_prompt),
    )
    source = click.get_current_context().get_parameter_source("gguf")
    if source is not ParameterSource.DEFAULT:
        eval_rows.show(setup, eval_rows.run(setup, task))
        return
    rows = _run_bundled(setup, what, task)
    if setup.html is not None:
        eval_rows.write_html(setup.html, rows, title="The bundled models on the small world")
    report = world_table.report(rows, what)
    if setup.as_json:
        click.echo(json.dumps({**document(rows), **report}))
    else:
        world_table.print_table(report)


def _run_bundled(setup: eval_options.Setup, what: Examination, task: Task) -> list[ResultRow]:
    """The bundled models' rows; what the journal of `setup.output` holds is not done again."""
    given = next((text for name, text in _OF_ONE_MODEL.items() if _given(setup, name)), None)
    if given is not None:
        raise UsageError(f"{given} is for one model: name it with --gguf")
    limits = setup.chosen.limits
    limits = replace(limits, context=limits.context or world_table.CONTEXT)
    load = partial(world_table.load_bundled, replace(setup.chosen, limits=limits))
    settings = {**eval_rows.settings(setup, task), **world_table.fingerprints()}
    rows: list[ResultRow] = []
    with Journal(eval_rows.journal_file(setup.output), settings) as journal:
        words, data = setup.measured_words, data_key(task.settings)
        for row in world_table.examined(what, load, journal, words, data):
            rows.append(row)
            if setup.output is not None:
                write_json(setup.output, document(rows))
    return rows


def _given(setup: eval_options.Setup, name: str) -> bool:
    return bool(getattr(setup, name, None) or getattr(setup.chosen, name, None))
