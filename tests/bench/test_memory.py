"""What loading adds, on a made-up /proc/self/status and on the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cmc_local.bench.memory import Memory, peak, resident

STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmRSS:\t  {} kB\nThreads:\t2\n"


def test_each_part_is_what_came_on_top(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS.format(100))
    memory = Memory(status)
    with memory.adding("base"):
        status.write_text(STATUS.format(500))
    status.write_text(STATUS.format(600))  # not of either part
    with memory.adding("delta"):
        status.write_text(STATUS.format(610))
    with memory.adding("base"):
        status.write_text(STATUS.format(611))
    assert memory.added == {"base": 401 * 1024, "delta": 10 * 1024}


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "missing")
    with memory.adding("base"):
        pass
    assert memory.added == {}
    (tmp_path / "other").write_text("Name:\tpython\n")
    assert resident(tmp_path / "other") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_large_array_is_seen() -> None:
    memory = Memory()
    with memory.adding("array"):
        array = np.ones(64 << 20, np.uint8)
    assert 60 << 20 < memory.added["array"] < 70 << 20
    now = peak()
    assert now is not None
    assert now > array.nbytes
