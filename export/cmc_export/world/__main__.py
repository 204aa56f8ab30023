"""`python -m cmc_export.world models | ceilings`: makes the small world's models, or measures
what fine-tuning would give. Both can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import sys

from cmc_export.world.build import make_models
from cmc_export.world.ceilings import make_ceilings
from cmc_local.errors import CmcError


def main() -> int:
    """Run one of the two; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cmc_export.world", description=__doc__)
    parser.add_argument("what", choices=("models", "ceilings"))
    work = {"models": make_models, "ceilings": make_ceilings}[parser.parse_args().what]
    try:
        work(lambda line: print(line, file=sys.stderr, flush=True))
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
