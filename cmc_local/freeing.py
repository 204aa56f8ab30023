"""Memory that nobody uses any more, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


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
