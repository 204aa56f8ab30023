"""`python -m cmc_export.world WHAT`: makes the small world's models, or what they are measured by.

    texts       what it is trained on, into runs/world
    models      everything in models/
    ceilings    the base models fine-tuned themselves
    rivals      fine-tuning, LoRA and proxy-tuning in one table with the bundled adapter
    retrained   the base models without the forgotten authors
    trials, forget-trials   other ways of training `instruct` and `forget`

All can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

from cmc_export.world.build import make_models, make_texts
from cmc_export.world.ceilings import make_ceilings
from cmc_export.world.forget_trials import TRIALS as FORGET_TRIALS
from cmc_export.world.forget_trials import run_forget_trials
from cmc_export.world.retrained import BASES, make_retrained
from cmc_export.world.rivals import make_rivals
from cmc_export.world.trials import TRIALS, run_trials
from cmc_local.errors import CmcError, UsageError

WHAT = ("texts", "models", "ceilings", "retrained", "rivals", "trials", "forget-trials")


MAKERS = {
    "texts": make_texts,
    "models": make_models,
    "ceilings": make_ceilings,
    "rivals": make_rivals,
}


def main() -> int:
    """Run one of them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cmc_export.world", description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("names", nargs="*", help="trials or models; all of them without")
    parser.add_argument("--seeds", default="5", help="of trials, as in 5,6,7")
    parser.add_argument("--part", default="validation", choices=("validation", "test"))
    chosen = parser.parse_args()
    try:
        seeds = [int(seed) for seed in chosen.seeds.split(",")]
        if chosen.what == "trials":
            _known(chosen.names, TRIALS)
            run_trials(chosen.names or [*TRIALS], seeds, chosen.part, _say)
        elif chosen.what == "forget-trials":
            _known(chosen.names, FORGET_TRIALS)
            run_forget_trials(chosen.names or [*FORGET_TRIALS], seeds, chosen.part, _say)
        elif chosen.what == "retrained":
            _known(chosen.names, BASES)
            make_retrained(_say, chosen.names or BASES)
        else:
            MAKERS[chosen.what](_say)
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _known(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{name} is not known: choose some of {', '.join(known)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
