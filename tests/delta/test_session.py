"""ONNX Runtime tells nobody anything, and a delta runs on the device that was asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmc_local.delta import adapter as adapters
from cmc_local.delta import session
from cmc_local.delta.adapter import Adapter, AdapterSettings, DeltaShape
from cmc_local.errors import DeviceError, UsageError
from cmc_local.text.prompts import named_form

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
from cmc_local.delta.session import ort
ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
time.sleep(15)  # the first event goes out within ten seconds
"""


def test_the_environment_forbids_telemetry_before_the_library_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_session_connects_to_nobody(bundled_models: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: it sees what native code connects to")
    graph = next((bundled_models / "instruct").glob("*.onnx"))
    calls = tmp_path / "calls.txt"
    watched = [strace, "-f", "-e", "trace=connect,sendto,sendmsg", "-o", str(calls)]
    subprocess.run([*watched, sys.executable, "-c", SESSION, str(graph)], check=True, timeout=120)
    assert "AF_INET" not in calls.read_text()


# --- devices ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Adapter:
    """An adapter of files that nothing here opens: fp32 and int8, no fp16."""
    shape = DeltaShape(
        vocabulary=5, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8, context=16
    )
    settings = AdapterSettings(name="small", shape=shape, prompt=named_form("cmc"))
    files: dict[str, bytes | Path] = {
        "delta.onnx": b"graph",
        "delta.int8.onnx": b"graph",
        "tokenizer.json": b"{}",
    }
    return adapters.write(tmp_path / "small", settings, files)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cpu:1"])
def test_a_device_that_does_not_exist_is_a_usage_error(small: Adapter, name: str) -> None:
    with pytest.raises(UsageError, match="cuda:N"):
        session.choose_device(name, small, None)


def test_a_gpu_is_used_for_the_fp16_graph_only(
    small: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "cuda_problem", lambda device_id=0: None)  # as if one were here
    assert session.choose_device("auto", small, None) == ("cpu", 0)
    with pytest.raises(DeviceError, match="fp16 graph"):
        session.choose_device("cuda", small, None)


def test_without_a_usable_gpu_cuda_is_one_line_and_auto_is_silent(
    small: Adapter, capfd: pytest.CaptureFixture[str]
) -> None:
    if session.cuda_problem() is None:
        pytest.skip("a usable GPU is here: tests/gpu/check.py is the test to run")
    with pytest.raises(DeviceError, match="--delta-device cpu"):
        session.choose_device("cuda", small, None)
    assert session.choose_device("auto", small, None) == ("cpu", 0)
    assert capfd.readouterr() == ("", "")


def test_why_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(session, "_driver_devices", lambda: 0)
    assert session.cuda_problem() == "no NVIDIA GPU was found"
    monkeypatch.setattr(session, "_driver_devices", lambda: 2)
    assert session.cuda_problem(2) == "the CUDA driver shows 2 devices"
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "has no CUDA provider" in str(session.cuda_problem())
