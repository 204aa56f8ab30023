"""What a `with` block closes, and memory that nobody uses any more given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """`with Thing() as thing: ...` ends in `thing.close()`."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; more than once is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def trim_heap() -> None:
    """Return the heap's free pages, where the C library can be asked to.

    Reading a large file or building a large table leaves them behind, of no use to anyone: after a
    delta's file was opened, some 40 % of its size.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc alone has this function
        ctypes.CDLL(None).malloc_trim(0)


def free_unused() -> None:
    """Free what is in reference cycles now, not some thousands of requests later; trim the heap.

    Caches of methods and peers that know each other hold a delta's session in such cycles.
    """
    gc.collect()
    trim_heap()
