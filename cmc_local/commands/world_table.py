"""The bundled models on the small world: their rows, their report, its tables.

What `cmc-local eval world` and `cmc-local demo` share.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from cmc_local import bundled
from cmc_local.commands import loading
from cmc_local.commands.eval_rows import Findings, Values, kept_values, writing
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.progress import progress
from cmc_local.delta import adapter
from cmc_local.evaluate import delta_alone
from cmc_local.evaluate.journal import Journal, fingerprint
from cmc_local.evaluate.report_gaps import gap_closed
from cmc_local.evaluate.results import ResultRow, Strength
from cmc_local.evaluate.world import (
    GREEDY,
    Examination,
    Rates,
    ceilings,
    metrics,
    rates,
)
from cmc_local.hub.places import AdapterChoice
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits
from cmc_local.text.base_prompt import BasePrompt

CONTEXT: Final = 256
"""Enough for one question and its answer."""
LIMITS: Final = Limits(context=CONTEXT, parallel=4)
_ARMS: Final = (
    # adapters that act -> the words that load them; forgetting comes alone and on top
    ((), ("--adapter", "instruct:0", "--arm", "plain")),
    (("instruct",), ("--adapter", "instruct", "--arm", "steered")),
    (("instruct", "forget"), ("--adapter", "instruct", "--adapter", "forget", "--arm", "steered")),
    (("forget",), ("--adapter", "instruct:0", "--adapter", "forget", "--arm", "steered")),
)


def load_bundled(how: ModelChoice, name: str) -> SteeredModel:
    """A bundled base model with both adapters of the small world, loaded as `how` says."""
    adapters = tuple(AdapterChoice(bundled.adapter(one)) for one in bundled.WORLD_ADAPTERS)
    return loading.steered(replace(how, gguf=bundled.base(name), adapters=adapters))


def measure(
    what: Examination,
    model: SteeredModel,
    strength: Strength,
    values: Values,
    *,
    base_prompt: BasePrompt | None = None,
) -> Findings:
    """The metrics of a model at a strength."""
    work = writing(model, strength, GREEDY, base_prompt)
    replies, forgotten = (
        [one["reply"] for one in values(name, [one.question for one in asked], work)]
        for name, asked in (("questions", what.test), ("forgotten", what.forgotten))
    )
    return Findings(metrics(what, replies, forgotten))


def fingerprints() -> dict[str, Any]:
    """What a journal knows the bundled models by."""
    return {
        "model": [fingerprint(bundled.base(name)) for name in bundled.BASES],
        "adapters": [
            fingerprint(bundled.adapter(a) / "adapter.json") for a in bundled.WORLD_ADAPTERS
        ],
    }


def examined(
    what: Examination,
    load: Callable[[str], SteeredModel],
    journal: Journal,
    words: Sequence[str] = (),
    data: str | None = None,
) -> Iterator[ResultRow]:
    """The rows of each bundled model: plain, `instruct`, `forget` on top and alone, fine-tuned.

    `words` are those of the command line that say what is asked, for the rows' own commands;
    `data` is the rows' `data_key`.
    """
    command = ("cmc-local", "eval", "world")
    tops = ceilings(bundled.folder() / "world/ceilings.jsonl", what)
    with progress(what.count * len(_ARMS) * len(bundled.BASES), "questions") as told:
        for name in bundled.BASES:
            with load(name) as model:
                size, own = len(model.base.vocabulary), dict(model.alphas)
                for acting, chosen in _ARMS:
                    strength = Strength({one: own[one] if one in acting else 0.0 for one in own})
                    values = partial(kept_values, journal, f"{name}: {strength.key}", told)
                    yield ResultRow(
                        task="world",
                        model=name,
                        vocabulary=size,
                        arm=chosen[-1],
                        adapter=strength.adapter,
                        alpha=strength.alpha,
                        metrics=measure(what, model, strength, values).metrics,
                        count=len(what.test),
                        command=shlex.join([*command, "--gguf", name, *chosen, *words]),
                        data=data,
                    )
            if (top := tops.get(name)) is not None:
                yield ResultRow(
                    task="world",
                    model=name,
                    vocabulary=size,
                    arm="finetuned",
                    adapter=None,
                    alpha=None,
                    metrics={"exact": top.exact, "fact": top.fact},
                    count=top.count,
                    command=shlex.join([*command, *words]),
                    data=data,
                )


def report(rows: Sequence[ResultRow], what: Examination) -> dict[str, Any]:
    """What the tables show, from the rows of `examined` and a look at the delta alone."""
    found = {(row.model, row.arm, row.adapter): row for row in rows}
    models, forget = [], {}
    for name in bundled.BASES:
        plain, steered = found[name, "plain", None], found[name, "steered", "instruct"]
        both, alone = found[name, "steered", "instruct+forget"], found[name, "steered", "forget"]
        finetuned = found.get((name, "finetuned", None))
        top = None if finetuned is None else finetuned.metrics["exact"]
        models.append(
            {
                "name": name,
                "vocabulary": plain.vocabulary,
                "plain": _shares(plain),
                "steered": _shares(steered),
                "finetuned": None if finetuned is None else _shares(finetuned),
                "gap_closed": gap_closed(
                    "exact", plain.metrics["exact"], steered.metrics["exact"], top
                ),
            }
        )
        forget[name] = {
            "forgotten": _before_after("forgotten_fact", steered, both),
            "kept": _before_after("kept_fact", steered, both),
            "exact_kept": _before_after("exact", steered, both),
            "alone": {
                "forgotten": alone.metrics["forgotten_fact"],
                "kept": alone.metrics["kept_fact"],
            },
        }
    return {
        "models": models,
        "forget": forget,
        "delta_alone": asdict(_alone(what)),
        "questions": {"test": len(what.test), "forgotten": len(what.forgotten)},
    }


def _shares(row: ResultRow) -> dict[str, Any]:
    return {"exact": row.metrics["exact"], "fact": row.metrics["fact"], "count": row.count}


def _before_after(metric: str, before: ResultRow, after: ResultRow) -> dict[str, float]:
    return {"before": before.metrics[metric], "after": after.metrics[metric]}


def _alone(what: Examination) -> Rates:
    instruct = adapter.load(bundled.adapter("instruct"))
    replies = delta_alone.answers(instruct, [q.question for q in what.test])
    return rates(what.test, replies)


def print_table(report: dict[str, Any]) -> None:
    """The report as two tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counts = report["questions"]
    answers = Table(title=f"Answers to {counts['test']} questions (exact / right fact)")
    for column in ("model", "tokens", "plain", "steered", "fine-tuned", "gap closed"):
        answers.add_column(column, justify="left" if column == "model" else "right")
    for row in report["models"]:
        gap = row["gap_closed"]
        pairs = [_pair(row[arm]) for arm in ("plain", "steered", "finetuned")]
        shown = "-" if gap is None else f"{gap:.2f}"
        answers.add_row(row["name"], f"{row['vocabulary']:,}", *pairs, shown)
    answers.add_row("delta alone", "", "", _pair(report["delta_alone"]), "", "")
    console.print(answers)
    forget = Table(title=f"Right facts with `forget` added ({counts['forgotten']} forgotten)")
    for column in ("model", "forgotten: before", "after", "kept: before", "after"):
        forget.add_column(column, justify="left" if column == "model" else "right")
    for name, row in report["forget"].items():
        cells = [row[kind][when] for kind in ("forgotten", "kept") for when in ("before", "after")]
        forget.add_row(name, *(f"{cell:.2f}" for cell in cells))
    console.print(forget)


def _pair(shares: dict[str, Any] | None) -> str:
    return "-" if shares is None else f"{shares['exact']:.2f} / {shares['fact']:.2f}"
