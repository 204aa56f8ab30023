"""ONNX Runtime is loaded with its telemetry off, and tells nobody anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ORDER = """
import os, sys
from importlib.abc import MetaPathFinder

class Note(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Note())
import cmc_local.delta.onnx_delta
"""

SESSION = """
import sys, time
from cmc_local.delta.library import ort
ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
time.sleep(15)  # the first event goes out within ten seconds
"""


def test_the_environment_forbids_telemetry_before_the_library_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_session_connects_to_nobody(bundled_models: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no `strace`: install it (Debian: apt-get install strace)")
    graph = next((bundled_models / "instruct").glob("*.onnx"))
    calls = tmp_path / "calls.txt"
    watched = [strace, "-f", "-e", "trace=connect,sendto,sendmsg", "-o", str(calls)]
    subprocess.run([*watched, sys.executable, "-c", SESSION, str(graph)], check=True, timeout=120)
    assert "AF_INET" not in calls.read_text()
