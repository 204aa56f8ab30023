"""`cmc-local demo`: the same questions to three models, plain and steered, then the table."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from cmc_local import bundled
from cmc_local.commands import options


@click.command()
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Questions of each kind behind the table.",
)
@options.control
def command(limit: int, control: Any) -> None:
    """See it work on the bundled models: one delta, three models, two vocabularies."""
    from rich.console import Console

    from cmc_local.commands.world_table import examined, load_bundled, print_table, report
    from cmc_local.evaluate.journal import Journal
    from cmc_local.evaluate.world import GREEDY, examination, read_questions

    console = Console(highlight=False)
    questions = read_questions(bundled.world("questions.jsonl"))
    what = examination(questions)
    shown = [*what.test[:: len(what.test) // 2 + 1], what.forgotten[0]]
    for name in bundled.BASES:
        with load_bundled(name, control) as model:
            tokens = len(model.base.vocabulary)
            console.print(f"\n[bold]{name}[/bold], {tokens:,} tokens")
            for one in shown:
                console.print(f"  {one.question}", markup=False)
                own = dict(model.alphas)
                arms = {"plain": dict.fromkeys(own, 0.0), "instruct": {**own, "forget": 0.0}}
                if one.forgotten:
                    arms["+ forget"] = own
                for arm, alphas in arms.items():
                    text = model.generate(one.question, GREEDY, alphas=alphas).text
                    shown_text = _one_line(text, console.width - 15)
                    console.print(f"    {arm:<9} {shown_text}", markup=False)
    console.print()
    some = examination(questions, limit)
    load = partial(load_bundled, control=control)
    print_table(report(list(examined(some, load, Journal(None, {}))), some))
    console.print("The whole examination: cmc-local eval world", markup=False)


def _one_line(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
