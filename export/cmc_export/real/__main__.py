"""`python -m cmc_export.real [WHAT]`: what the method does on real models, measured.

    run       (the default) everything below for the chosen tasks, bases, arms and seeds
    data      the tasks' data alone
    known     which facts a base knows, for the task `forget`
    measure   the chosen cells, in this process
    table     runs/real/report.html and table.md, of all results that are there
    brief     the adapter that ships as models/brief
    docs      the same table as a page of the documentation, docs/real.md
    kinds     loss by kind of token and by map on `short`, and trials: runs/real/kinds/table.md

All can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cmc_export.real import brief, data, forgetting, kind_report, measure, table
from cmc_export.real.build import ALL_ARMS, ALL_TASKS, Chosen, make_all
from cmc_export.real.measure import Sizes
from cmc_export.real.places import MODELS, RUNS, TEMPLATES, USUAL, Cell
from cmc_local.errors import CmcError, UsageError

WHAT = ("run", "data", "brief", "known", "measure", "kinds", "table", "docs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    given = _parser().parse_args(arguments)
    try:
        chosen = _chosen(given)
        _do(given, chosen)
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _do(given: argparse.Namespace, chosen: Chosen) -> None:
    if given.what == "run":
        make_all(chosen, _say)
    elif given.what == "data":
        for task in chosen.tasks:
            if task != "forget":  # its data depends on what the models know
                data.write_data(chosen.runs, task)
    elif given.what == "brief":
        brief.make(chosen.runs, _say)
    elif given.what == "known":
        for base in chosen.bases:
            forgetting.find_known(base, chosen.runs, chosen.sizes.threads, _say)
    elif given.what == "measure":
        for cell in cells(chosen, given.arms):
            _say(f"{cell.task} on {cell.base}: {cell.arm}")
            if cell.task == "forget":
                forgetting.measure(cell, chosen.runs, chosen.sizes, _say)
            else:
                measure.measure(cell, chosen.runs, chosen.sizes, _say, chosen.alpha_of)
    elif given.what == "table":
        table.write(chosen.runs, _say)
    elif given.what == "kinds":
        one_each = [name for name in chosen.templates if name != "both"]
        kind_report.write(chosen.bases, one_each, chosen.runs, chosen.sizes.threads, _say)
    else:
        table.write_docs(chosen.runs, Path("docs/real.md"), _say)


def cells(chosen: Chosen, arms: Sequence[str]) -> list[Cell]:
    """The cells that are chosen; an arm is `delta-gemma3` here, or `delta` for all templates."""
    found = []
    for arm in arms:
        names = [f"delta-{one}" for one in chosen.templates] if arm == "delta" else [arm]
        for task in chosen.tasks:
            for base in chosen.bases:
                for name in names:
                    made = [Cell(task, base, name, seed) for seed in chosen.seeds]
                    found += made if made[0].is_seeded else made[:1]
    return found


def _chosen(given: argparse.Namespace) -> Chosen:
    try:
        seeds = tuple(int(seed) for seed in given.seeds.split(","))
    except ValueError:
        raise UsageError(f"--seeds {given.seeds}: give numbers, as in 0,1,2") from None
    given.arms = _words(given.arms)
    templates = _words(given.templates)
    plain_arms = []
    for arm in given.arms:
        name = arm.partition("-")[0]
        if arm != name and arm.partition("-")[2] not in TEMPLATES:
            raise UsageError(f"--arms {arm}: choose some of {', '.join(ALL_ARMS)}")
        plain_arms.append(name)
    if not given.arms:
        given.arms = list(ALL_ARMS) if given.what == "measure" else []
    sizes = measure.smaller(
        Sizes(),
        test=given.test,
        nll=given.nll,
        choose=given.choose,
        max_tokens=given.max_tokens,
        parallel=given.parallel,
        threads=given.threads,
    )
    return Chosen(
        tasks=tuple(_words(given.tasks)),
        bases=tuple(_words(given.bases)),
        arms=tuple(plain_arms),
        templates=tuple(templates),
        seeds=seeds,
        runs=given.runs,
        pretrained=given.pretrained,
        precision=given.precision,
        more=given.more,
        sizes=sizes,
        alpha_of=given.alpha_of,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cmc_export.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=WHAT, default="run")
    parser.add_argument("--tasks", default=",".join(ALL_TASKS), help="(all)")
    parser.add_argument("--bases", default=",".join(MODELS), help="(all)")
    parser.add_argument("--arms", default="", help=f"some of {','.join(ALL_ARMS)} (all)")
    parser.add_argument(
        "--templates", default=",".join(USUAL), help=f"of {','.join(TEMPLATES)} ({','.join(USUAL)})"
    )
    parser.add_argument("--seeds", default="0", help="as in 0,1,2 (0)")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"({RUNS})")
    parser.add_argument("--pretrained", type=Path, help="a pretrained delta, in place of one's own")
    parser.add_argument("--precision", default="int8", help="of the adapters (int8)")
    parser.add_argument("--more", default="", help="words for every training, as in '--steps 5'")
    parser.add_argument(
        "--alpha-of", type=int, metavar="SEED", help="its tuned alpha for all seeds (each its own)"
    )
    for name, what in (
        ("test", "replies measured"),
        ("nll", "answers scored"),
        ("choose", "validation examples by which prompts and strengths are chosen"),
        ("max-tokens", "of a reply"),
        ("parallel", "replies written at once"),
        ("threads", "of llama.cpp, 0 its own choice"),
    ):
        value = getattr(Sizes(), name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, help=f"{what} ({value})")
    return parser


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
