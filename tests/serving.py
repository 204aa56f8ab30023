"""A real `cmc-local serve` on a free port, for the tests that need one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def serving(*options: str, seconds: float = 60.0) -> Iterator[str]:
    """Its address, such as `http://127.0.0.1:40797`, once the model is loaded."""
    command = [sys.executable, "-m", "cmc_local", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"(http://\S+?)/v1", first)
        assert found, f"no address in {first!r}"
        end = time.monotonic() + seconds
        while httpx.get(f"{found[1]}/health").status_code != 200:
            assert time.monotonic() < end, "the model is never loaded"
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(20)
