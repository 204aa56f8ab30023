"""`python -m cmc_export.real.brief_choice ADAPTER ...`: which adapter answers briefly and well?

    adapter x base x alpha -> ROUGE-L F1, tokens and cut-off share on `short`'s validation part
    --test: the same on its test part, for the one that was chosen, once

Each adapter is asked as `measure` asks a delta. Nothing is asked twice: a journal a file is kept in
runs/real/brief, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cmc_export.real.data import read_records, write_data
from cmc_export.real.measure import CONTEXT, Bench, Say, Sizes
from cmc_export.real.places import MODELS, RUNS, TaskPlace, gguf
from cmc_export.real.tasks import TASKS
from cmc_local.errors import CmcError
from cmc_local.evaluate.journal import Journal, fingerprint, journal_path
from cmc_local.evaluate.reply_measures import lengths
from cmc_local.evaluate.results import spread
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

TASK = TASKS["short"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; the exit code."""
    given = _parser().parse_args(arguments)
    sizes = Sizes(test=given.count, max_tokens=given.max_tokens, threads=given.threads)
    part = "test" if given.test else "valid"
    alphas = tuple(float(one) for one in given.alphas.split(","))
    try:
        write_data(given.runs, "short")
        for base in given.bases.split(","):
            for adapter in given.adapters:
                score(adapter, base, part, alphas, given.runs, sizes, _say)
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def score(
    adapter: Path,
    base: str,
    part: str,
    alphas: Sequence[float],
    runs: Path,
    sizes: Sizes,
    say: Say,
) -> list[dict[str, Any]]:
    """One adapter on one base at each strength; written to a file of its own."""
    target = runs / "brief" / f"choice.{base}.{adapter.resolve().name}.{part}.json"
    records = spread(read_records(TaskPlace(runs, "short").data(part)), sizes.test)
    settings = {
        "adapter": fingerprint(adapter / "adapter.json"),
        "base": fingerprint(gguf(base)),
        "questions": [one["question"] for one in records],
        "max_tokens": sizes.max_tokens,
    }
    limits = Limits(context=CONTEXT, parallel=sizes.parallel)
    rows = []
    with (
        Journal(journal_path(target), settings) as journal,
        SteeredModel.load(
            gguf(base), [adapter], limits=limits, threads=sizes.threads or None
        ) as model,
    ):
        bench = Bench(model, TASK, journal, sizes, as_form=False, say=say)
        for alpha in alphas:
            replies = bench.replies(f"{part} {alpha:g}", records, alpha)
            items = [one[TASK.metric] for one in bench.scores(records, replies)]
            row = {"alpha": alpha, TASK.metric: fmean(items), **lengths(replies)}
            rows.append({**row, "items": items, "replies": [one["reply"] for one in replies]})
            say(
                f"{adapter} on {base}, {part}, alpha {alpha:g}: {TASK.metric} "
                f"{row[TASK.metric]:.3f}, {row['tokens']:.0f} tokens, cut off {row['cut_off']:.2f}"
            )
    write_json(target, {"adapter": str(adapter), "base": base, "part": part, "rows": rows})
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cmc_export.real.brief_choice",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER")
    parser.add_argument("--bases", default=",".join(MODELS), help="(all)")
    parser.add_argument("--alphas", default="0.5,0.75,1", help="(0.5,0.75,1)")
    parser.add_argument("--count", type=int, default=40, help="questions (40)")
    parser.add_argument("--test", action="store_true", help="the test part, not the validation")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a reply (64)")
    parser.add_argument("--threads", type=int, default=0, help="of llama.cpp, 0 its own choice")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"({RUNS})")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
