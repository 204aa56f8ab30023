"""`cmc-local demo`: the same questions to three models, plain and steered, then the table.

With `--real` they are real models, and there is no table: see `demo_real`.
"""

from __future__ import annotations

from functools import partial

import click

from cmc_local import bundled
from cmc_local.commands import options
from cmc_local.settings import Control


@click.command()
@click.option("--limit", type=click.IntRange(1), default=16, show_default=True,
              help="Questions of each kind behind the table.")  # fmt: skip
@click.option("--real", is_flag=True, help="Ask the real models that are on this machine.")
@options.control
def command(limit: int, real: bool, control: Control) -> None:
    """See it work: one delta, three models, the same questions plain and steered.

    The models are the bundled ones of a small made-up world; with --real they are SmolLM2, Gemma 3
    and Qwen2.5-Coder, as many of them as are on this machine, and `brief` steers them.
    """
    if real:
        from cmc_local.commands import demo_real

        return demo_real.show(control)
    return _show_world(limit, control)


def _show_world(limit: int, control: Control) -> None:
    """Some questions to each bundled model, then the table of the examination."""
    from rich.console import Console

    from cmc_local.commands.model_choice import ModelChoice
    from cmc_local.commands.world_table import LIMITS, examined, load_bundled, print_table, report
    from cmc_local.evaluate.journal import Journal
    from cmc_local.evaluate.world import GREEDY, examination, read_questions

    console = Console(highlight=False)
    questions = read_questions(bundled.world("questions.jsonl"))
    what = examination(questions)
    shown = [*what.test[:: len(what.test) // 2 + 1], what.forgotten[0]]
    how = ModelChoice(gguf=bundled.base(), control=control, limits=LIMITS)
    load = partial(load_bundled, how)
    for name in bundled.BASES:
        with load(name) as model:
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
    print_table(report(list(examined(some, load, Journal(None, {}))), some))
    console.print("The whole examination: cmc-local eval world", markup=False)


def _one_line(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
