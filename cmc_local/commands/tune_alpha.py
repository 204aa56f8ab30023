"""`cmc-local tune-alpha`: the strength at which an adapter serves one GGUF model best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from cmc_local.commands import eval_options, loading, options
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.progress import progress
from cmc_local.errors import UsageError
from cmc_local.evaluate.results import spread
from cmc_local.model import profiles
from cmc_local.model.profiles import Measured, Point, Tuned
from cmc_local.model.steered import SteeredModel
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.rows import Conversation, read_conversations


@click.command()
@options.model(
    options.gguf,
    options.adapters,
    eval_options.data("Held-out answers, JSON or JSONL: question/answer, messages, ..."),
    click.option(
        "--alphas",
        metavar="A,B,...",
        callback=eval_options.strengths,
        help="Strengths to try; else 0 to 1.5, then finer ones around the best.",
    ),
    eval_options.limit,
    options.base_prompt,
    options.control,
    options.limits,
    options.devices,
    options.json_output,
)
def command(
    chosen: ModelChoice,
    data: Path,
    alphas: tuple[float, ...] | None,
    limit: int | None,
    base_prompt: BasePrompt | None,
    as_json: bool,
) -> None:
    """Find an adapter's best strength on held-out answers, for `chat` and `generate` to take.

    The best one has the lowest mean negative log-likelihood per token of the answers. It is kept in
    a profile of this GGUF file, which an alpha given as --adapter PATH:ALPHA overrules.
    """
    gguf, adapters = chosen.gguf, chosen.adapters
    if len(adapters) > 1:
        raise UsageError("give one --adapter: the strength of one is tuned at a time")
    if adapters and adapters[0].alpha is not None:
        raise UsageError("give --adapter without a strength: that is what is to be found")
    talks = spread(read_conversations([data]), limit)
    adapters = chosen.acting
    if not adapters:
        raise UsageError("there is no adapter to tune: give one with --adapter")
    with loading.steered(chosen) as model:
        key = profiles.model_key(gguf, model.base.vocabulary)
        (name,) = model.adapters
        points, measured = _search(model, talks, name, alphas, base_prompt)
        own = model.alphas[name]
    found = profiles.best(points)
    plain = next(point.nll for point in points if point.alpha == 0)
    tuned = Tuned(name, found.alpha, found.nll, plain, measured.answers)
    if measured.too_long:
        click.echo(f"{measured.too_long} answers left out: too long for the context", err=True)
    if as_json:
        place = profiles.profile_path(key)
        click.echo(json.dumps(_report(gguf, tuned, own, points, measured, place)))
    else:
        _print_table(gguf, tuned, own, points, measured)
    profiles.write(key, profiles.adapter_key(adapters[0].path), tuned)
    if not as_json:
        told = f"alpha {tuned.alpha:g} with {gguf.name} from now on"
        click.echo(f"`chat`, `generate` and `serve` take {told}")


def _search(
    model: SteeredModel,
    talks: list[Conversation],
    name: str,
    alphas: tuple[float, ...] | None,
    base_prompt: BasePrompt | None,
) -> tuple[list[Point], Measured]:
    """All points, and the last measurement, whose counts are those of each."""
    rounds: list[Measured] = []
    with progress(len(talks) * (1 if alphas else 2), "answers") as told:

        def measured(tried: Sequence[float]) -> tuple[Point, ...]:
            rounds.append(
                profiles.measure(model, talks, name, tried, base_prompt=base_prompt, told=told)
            )
            return rounds[-1].points

        points = profiles.search(measured, model.alphas[name], alphas)
    return points, rounds[-1]


def _report(
    gguf: Path, tuned: Tuned, own: float, points: list[Point], measured: Measured, path: Path
) -> dict[str, object]:
    return {
        "model": gguf.name,
        "adapter": tuned.name,
        "alpha": tuned.alpha,
        "nll": tuned.nll,
        "plain_nll": tuned.plain,
        "own_alpha": own,
        "answers": measured.answers,
        "tokens": measured.tokens,
        "too_long": measured.too_long,
        "points": [point._asdict() for point in points],
        "profile": str(path),
    }


def _print_table(
    gguf: Path, tuned: Tuned, own: float, points: list[Point], measured: Measured
) -> None:
    marks = {0.0: ["plain base"]}
    marks.setdefault(own, []).append("the adapter's own")
    marks.setdefault(tuned.alpha, []).append("best")
    click.echo(f"{tuned.name} on {gguf.name}: {measured.answers} answers, {measured.tokens} tokens")
    click.echo(" alpha  nats/token")
    for alpha, nll in points:
        click.echo(f"{alpha:6g}  {nll:10.4f}  {', '.join(marks.get(alpha, []))}".rstrip())
    if tuned.alpha in (points[0].alpha, points[-1].alpha) and tuned.alpha != 0:
        click.echo("the best is the last that was tried: see what lies beyond it with --alphas")
