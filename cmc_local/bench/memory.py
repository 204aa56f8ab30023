"""How much memory this process holds, and how much a step of loading adds.

    memory = Memory()
    with memory.adding("base"):
        base = BaseModel(...)
    memory.added                  {"base": 671088640}

Resident bytes, as `/proc/self/status` tells them on Linux; elsewhere only the peak is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


class Memory:
    """Notes what each part of loading added to the resident memory, in bytes."""

    def __init__(self, status: Path = STATUS) -> None:
        self._status = status
        self.added: dict[str, int] = {}

    @contextmanager
    def adding(self, name: str) -> Iterator[None]:
        """What is loaded meanwhile goes by `name`; nothing is noted where the system tells none."""
        before = resident(self._status)
        yield
        after = resident(self._status)
        if before is not None and after is not None:
            self.added[name] = self.added.get(name, 0) + after - before


def resident(status: Path = STATUS) -> int | None:
    """Bytes of this process in memory now, mapped files included; None where nobody tells."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    sizes = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    kilobytes = sizes.get("VmRSS")
    return None if kilobytes is None else 1024 * int(kilobytes[0])


def peak() -> int | None:
    """The most that this process ever held, in bytes; None where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
