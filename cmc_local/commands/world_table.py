"""Runs the small world's examination over the bundled models, and draws its table.

What `cmc-local eval world` and `cmc-local demo` share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmc_local import adapter, bundled
from cmc_local.evaluate import delta_alone
from cmc_local.evaluate.world import (
    Examination,
    Rates,
    ceilings,
    examination,
    examine,
    gap_closed,
    rates,
    read_questions,
)
from cmc_local.settings import Control, Limits
from cmc_local.steered import SteeredModel

CONTEXT = 256
"""Enough for one question and its answer."""


def load_bundled(name: str, control: Control) -> SteeredModel:
    """A bundled base model with both bundled adapters."""
    both = [bundled.adapter(one) for one in bundled.ADAPTERS]
    return SteeredModel.load(
        bundled.base(name), both, control=control, limits=Limits(context=CONTEXT)
    )


def run_examination(
    questions: Path, *, limit: int | None, control: Control, progress: bool
) -> dict[str, Any]:
    """The report that `cmc-local eval world --json` prints."""
    what = examination(read_questions(questions), limit)
    known = ceilings(bundled.folder() / "world/ceilings.jsonl", what)
    rows, forget = [], {}
    with _bar(what.count * len(bundled.BASES), progress) as told:
        for name in bundled.BASES:
            with load_bundled(name, control) as model:
                row = examine(model, what, "instruct", "forget", told)
                tokens = len(model.base.vocabulary)
            forget[name] = row.pop("forget")
            rows.append(_with_ceiling(name, tokens, row, known.get(name)))
    return {
        "models": rows,
        "forget": forget,
        "delta_alone": asdict(_alone(what)),
        "questions": {"test": len(what.test), "forgotten": len(what.forgotten)},
    }


def _with_ceiling(
    name: str, vocabulary: int, row: dict[str, Any], ceiling: Rates | None
) -> dict[str, Any]:
    top = ceiling.exact if ceiling else None
    return {
        "name": name,
        "vocabulary": vocabulary,
        **row,
        "finetuned": asdict(ceiling) if ceiling else None,
        "gap_closed": gap_closed(row["plain"]["exact"], row["steered"]["exact"], top),
    }


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
    answers = Table(title=f"Answers to {counts['test']} test questions (exact / right fact)")
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


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, or nothing."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("questions", total=total)
        yield lambda: bar.advance(task)
