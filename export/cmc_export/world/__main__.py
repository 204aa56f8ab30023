"""`python -m cmc_export.world models | ceilings | trials`: makes the small world's models, measures
what fine-tuning would give, or what other ways of training give. All can be stopped and started.
"""

from __future__ import annotations

import argparse
import sys

from cmc_export.world.build import make_models
from cmc_export.world.ceilings import make_ceilings
from cmc_export.world.trials import TRIALS, run_trials
from cmc_local.errors import CmcError


def main() -> int:
    """Run one of them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cmc_export.world", description=__doc__)
    parser.add_argument("what", choices=("models", "ceilings", "trials"))
    parser.add_argument("names", nargs="*", choices=(*TRIALS, []), help="trials to run")
    parser.add_argument("--seeds", default="5", help="of trials, as in 5,6,7")
    parser.add_argument("--part", default="validation", choices=("validation", "test"))
    chosen = parser.parse_args()
    try:
        if chosen.what == "trials":
            seeds = [int(seed) for seed in chosen.seeds.split(",")]
            run_trials(chosen.names or [*TRIALS], seeds, chosen.part, _say)
        else:
            {"models": make_models, "ceilings": make_ceilings}[chosen.what](_say)
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
