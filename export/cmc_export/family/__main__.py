"""`python -m cmc_export.family`: the whole run on real data; can be stopped and started at will."""

from __future__ import annotations

import sys

from cmc_export.family.build import make_family
from cmc_local.errors import CmcError


def main() -> int:
    """Run it; the exit code."""
    try:
        make_family(lambda line: print(line, file=sys.stderr, flush=True))
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
