"""Several processes, and killed ones: the curve of a run depends on neither."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cmc_export.processes import own_gpu

NAMES = ("Helen", "Maria", "Anna", "Oscar", "Peter", "Lina", "Flora", "Henry", "Olive", "Carl")
TINY = ["--width", "16", "--layers", "1", "--heads", "1", "--mlp", "32", "--context", "128"]
MINUTE = 60.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of different lengths: a mean of each process's own mean would differ."""
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    records = [
        {"question": f"Where is {name}?", "answer": f"{name} is in the town. " * (1 + i % 4)}
        for i, name in enumerate(NAMES)
    ]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def command(template: Path, data: Path, output: Path, *more: str) -> list[str]:
    words = ["train", "--template", str(template), "--data", str(data), "-o", str(output), *TINY]
    words += ["--device", "cpu", "--precision", "fp32", "--template-precision", "fp32"]
    words += ["--threads", "1", "--log-every", "1", "--valid-share", "0.2", "--evaluate-every", "3"]
    words += ["--learning-rate", "1e-2", "--patience", "0", "--save-minutes", "0"]
    return [*words, *more]


def curve(folder: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line[name] for line in lines if name in line]


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=2 * MINUTE)
    assert done.returncode == 0, done.stderr[-3000:]


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert str(own_gpu()) == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert str(own_gpu()) == "cuda:2"


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    steps = ("--steps", "8")
    run(sys.executable, "-m", "cmc_local", *command(tiny_folder, data, one, "--batch", "4", *steps))
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    launch += ("--standalone", "-m", "cmc_local")
    run(*launch, *command(tiny_folder, data, two, "--batch", "2", *steps))
    assert curve(two) == pytest.approx(curve(one), abs=2e-3)
    assert curve(two, "eval_loss") == pytest.approx(curve(one, "eval_loss"), abs=2e-3)
    assert len(set(curve(one))) > 4  # it did learn something meanwhile


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_curve(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--batch", "2", "--steps", "40", "--dropout", "0.1")
    run(sys.executable, "-m", "cmc_local", *command(tiny_folder, data, whole, *more))
    words = [sys.executable, "-m", "cmc_local", *command(tiny_folder, data, killed, *more)]
    kill_after_some_steps(words, killed.with_name("killed.run"))
    assert not killed.exists()
    run(*words, "--resume")
    assert curve(killed) == pytest.approx(curve(whole), abs=5e-6)
    assert curve(killed, "eval_loss") == pytest.approx(curve(whole, "eval_loss"), abs=5e-6)


def kill_after_some_steps(words: list[str], folder: Path) -> None:
    """SIGKILL, at whatever the run is doing when its log has eight lines."""
    environment: dict[str, Any] = {**os.environ}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 2 * MINUTE
        log = folder / "log.jsonl"
        while time.monotonic() < end and process.poll() is None:
            if log.is_file() and log.read_text("utf-8").count("\n") >= 8:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
