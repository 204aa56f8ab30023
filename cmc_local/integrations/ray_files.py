"""Whether a machine's model files are those of the machine that asks, without reading all of them.

    files = marks([gguf], [adapter])     # where the work is started
    same(files, load)                    # on each machine: refuses other files, else loads

An adapter is known by its adapter.json, which holds the hashes of its other files; a GGUF by its
size and its two ends, so that two which differ in the middle alone pass for one. Knows no Ray.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cmc_local.delta.adapter import SETTINGS_FILE
from cmc_local.errors import InputError

END: Final = 1 << 20
"""Bytes of each end: metadata and vocabulary come first in a GGUF, weights last."""
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Mark:
    """What tells a file from others of its path."""

    path: Path
    bytes: int
    sha256: str
    """Of its first and last `END` bytes."""


def marks(ggufs: Iterable[Path], adapters: Iterable[Path]) -> tuple[Mark, ...]:
    """The marks of those files that this machine has; it need not have any."""
    files = [*ggufs, *(folder / SETTINGS_FILE for folder in adapters)]
    return tuple(mark for path in files if (mark := _mark(path)) is not None)


def same(files: Sequence[Mark], load: Callable[[], Loaded]) -> Loaded:
    """What `load` loads; InputError where a file is another one. Of absent ones `load` tells."""
    for known in files:
        if _mark(known.path) not in (known, None):
            raise InputError(
                f"{known.path} is another file than where the work was started: copy that one here"
            )
    return load()


def _mark(path: Path) -> Mark | None:
    try:
        with path.open("rb") as file:
            ends = hashlib.sha256(file.read(END))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - END, 0))
            ends.update(file.read(END))
    except OSError:
        return None
    return Mark(path, size, ends.hexdigest())
