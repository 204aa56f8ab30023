"""The options that `cmc-local eval nll`, `rouge`, `tofu`, `world` and `alpaca` share.

@click.command("nll", cls=Recorded)
@limit
@measured
def nll(setup: Setup, limit: int | None, ...): ...
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from cmc_local.commands import options
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.evaluate.optional_imports import import_optional
from cmc_local.settings import MOST_PARALLEL, Sampling
from cmc_local.text.base_prompt import BasePrompt

PARALLEL: Final = 4
strengths = options.number_list(float, "0,0.5,1")
"""The callback of `--alphas`."""
REPLY_TOKENS: Final = 200
"""Where TOFU's code ends a reply; all replies are of this length at most unless told."""
_WORDS: Final = "cmc_local.eval.words"
_OF_THE_RUN: Final = ("--alphas", "--output", "--html")
"""Options with a value that say which rows are made and where they go, not what is in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is measured, and where the results go."""

    chosen: ModelChoice
    alphas: tuple[float, ...] | None
    base_prompt: BasePrompt | None
    name: str | None
    arm: str | None
    output: Path | None
    html: Path | None
    as_json: bool
    words: tuple[str, ...]
    """The command line behind the command's name, as typed."""

    @property
    def model_name(self) -> str:
        """What the model is called in the table."""
        return self.name or self.chosen.gguf.stem

    def row_command(self, task: str, alpha: float | None) -> str:
        """The command line that makes one row; alpha None leaves the adapters' own strengths."""
        chosen = [] if alpha is None else ["--alphas", f"{alpha:.12g}"]
        return shlex.join(["cmc-local", "eval", task, *self.measured_words, *chosen])

    @property
    def measured_words(self) -> list[str]:
        """The words that say what is measured: neither which rows are made nor where they go."""
        return _without(self.words)


class Recorded(click.Command):
    """A command that remembers the words it was called with."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)


def measured(function: Callable[..., None]) -> Any:
    """All options of Setup, handed over as `setup`."""

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {name: values.pop(name) for name in Setup.__slots__ if name in values}
        words = click.get_current_context().meta[_WORDS]
        function(setup=Setup(**given, words=words), **values)

    return options.model(
        options.gguf,
        options.adapters,
        options.proxies,
        options.loras,
        click.option("--alphas", metavar="A,B,...", callback=strengths,
                     help="A row for each strength, 0 the plain base; else 0 and the own."),
        options.base_prompt,
        click.option("--name", metavar="TEXT", help="The model's name in the table."),
        click.option("--arm", metavar="TEXT",
                     help="The rows' arm, as in --arm finetuned; else plain, steered or lora."),
        click.option("--parallel", "-p", type=click.IntRange(1, MOST_PARALLEL),
                     default=PARALLEL, show_default=True, help="Replies written at once."),
        options.control,
        options.limits,
        options.devices,
        click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE",
                     help="Write results there; the same command goes on after a stop."),
        click.option("--html", type=click.Path(path_type=Path), metavar="FILE",
                     callback=_can_plot, help="Write a page with tables and plots."),
        options.json_output,
    )(command)  # fmt: skip


def _can_plot(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """The path as it is; MissingExtra before anything is measured rather than after."""
    if path is not None:
        import_optional("matplotlib")
    return path


def limit(function: Callable[..., None]) -> Callable[..., None]:
    """`--limit`."""
    return click.option(
        "--limit", type=click.IntRange(1), help="Only that many, evenly spread over the data."
    )(function)


def data(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--data`, which must be given."""
    return click.option(
        "--data", type=click.Path(path_type=Path), metavar="FILE", required=True, help=text
    )


def greedy(function: Callable[..., None]) -> Callable[..., None]:
    """The sampler's options as `sampling`: greedy and short where nothing is said."""

    @functools.wraps(function)
    def command(*, sampling: Sampling, **values: Any) -> None:
        given = click.get_current_context().params
        if given.get("temperature") is None:
            sampling = replace(sampling, temperature=0.0)
        if given.get("max_tokens") is None:
            sampling = replace(sampling, max_tokens=REPLY_TOKENS)
        function(sampling=sampling, **values)

    return options.sampling(command)


def _without(words: Sequence[str]) -> list[str]:
    """The words without --alphas, --output, --html, --json."""
    kept, rest = [], iter(words)
    for word in rest:
        name = "--output" if word == "-o" else word.partition("=")[0]
        if word.startswith("-o") and word != "-o":
            continue  # -oFILE
        if name in _OF_THE_RUN:
            if "=" not in word:
                next(rest, None)
        elif word != "--json":
            kept.append(word)
    return kept
