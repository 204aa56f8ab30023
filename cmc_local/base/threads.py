"""How many processor cores this process may use; both models divide them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOST_DELTA_THREADS: Final = 4


def usable_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores among the processors that this process may run on, at least 1.

    Two hardware threads of one core count once where the system tells (Linux); elsewhere each
    processor counts.
    """
    if hasattr(os, "sched_getaffinity"):
        processors = os.sched_getaffinity(0)
    else:
        processors = set(range(os.cpu_count() or 1))
    try:
        cores = {
            (topology / f"cpu{i}/topology/thread_siblings_list").read_text() for i in processors
        }
    except OSError:
        return max(1, len(processors))
    return max(1, len(cores))


def leaves_a_core(base_threads: int) -> bool:
    """Whether a base model of so many threads leaves one for the deltas."""
    return base_threads < usable_cores()


def usual_delta_threads(base_threads: int) -> int:
    """Threads of a delta beside a base model of so many: the cores that one leaves, or all.

    Where the base takes every core the two most often take turns, and a delta gains little from
    more than a few.
    """
    cores = usable_cores()
    return min(cores - base_threads if base_threads < cores else cores, _MOST_DELTA_THREADS)
