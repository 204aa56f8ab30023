"""The GPU check cannot pass without a GPU, and the suite says when it was not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cmc_local.delta.session import cuda_problem

CHECK = Path(__file__).with_name("check.py")


def run_check() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True)


def test_the_delta_on_a_gpu_agrees_with_the_cpu(bundled_models: Path) -> None:
    problem = cuda_problem()
    if problem is not None:
        pytest.skip(f"tests/gpu/check.py was not run: {problem}")
    if not (bundled_models / "instruct" / "delta.fp16.onnx").exists():
        pytest.skip("tests/gpu/check.py was not run: give it an adapter with an fp16 graph by hand")
    done = run_check()
    assert done.returncode == 0, done.stderr


def test_a_cpu_never_passes_for_a_gpu(bundled_models: Path) -> None:
    if cuda_problem() is None:
        pytest.skip("a usable GPU is here: the other test is the one to run")
    done = run_check()
    assert done.returncode == 1
    assert done.stderr.startswith("tests/gpu/check.py: failed: ")


def test_a_cpu_never_passes_for_a_gpu_in_training(bundled_models: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("a usable GPU is here: run tests/gpu/train_check.py by hand")
    script = CHECK.with_name("train_check.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("tests/gpu/train_check.py: failed: ")
