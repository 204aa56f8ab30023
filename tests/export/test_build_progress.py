"""What set-up says while llama.cpp is built, and what it says where the build fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import build_progress
from build_progress import progress, share_done

PROGRAM = Path(build_progress.__file__)


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("  [37/74] Building CXX object llama.cpp.o", 0.5),
        ("[1/1] Linking", 1.0),
        ("  [ 16%] Building C object ggml.c.o", 0.16),
        ("[100%] Built target llama", 1.0),
        ("[0/0] nothing to do", 0.0),
        ("-- Found Threads: TRUE", None),
        ("warning: array index [3/4] is past the end", None),
        ("[2/3/4]", None),
        ("", None),
    ],
)
def test_both_builders_say_how_far_they_are(line: str, share: float | None) -> None:
    assert share_done(line) == share


def test_what_is_left_is_told_once_it_can_be_known() -> None:
    assert progress(0.25, 30.0) == "llama.cpp: 25 % compiled after 0:30, about 1:30 left"
    assert progress(0.01, 0.2) == "llama.cpp: 1 % compiled after 0:00"
    assert progress(0.0, 65.0) == "llama.cpp: 0 % compiled after 1:05"
    assert progress(1.0, 125.0) == "llama.cpp: 100 % compiled after 2:05"


def run(log: Path, script: str, *beside: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PROGRAM), str(log), sys.executable, "-c", script, *beside]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_a_build_is_quiet_but_for_its_progress(tmp_path: Path) -> None:
    script = "print('[1/2] one.o'); print('noise'); print('[2/2] two.o')"
    done = run(tmp_path / "log", script)
    first, *rest = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (0, "")
    assert first == "llama.cpp: 50 % compiled after 0:00"
    assert rest == ["llama.cpp: built in 0:00"]  # the second line came too soon to be shown
    assert "noise" in (tmp_path / "log").read_text()


def test_a_build_that_fails_shows_the_end_of_its_log_and_its_status(tmp_path: Path) -> None:
    script = "for i in range(100): print(f'line {i}')\nprint('no compiler'); raise SystemExit(7)"
    done = run(tmp_path / "log", script)
    assert done.returncode == 7
    told = done.stderr.splitlines()
    assert told[0] == "line 61" and told[39] == "no compiler"
    assert told[-1] == f"llama.cpp was not built; everything that was printed: {tmp_path / 'log'}"
    assert (tmp_path / "log").read_text().startswith("line 0\n")


def test_what_runs_beside_is_waited_for_and_its_failure_is_none(tmp_path: Path) -> None:
    made = tmp_path / "made"
    beside = f"import time; time.sleep(0.3); open({str(made)!r}, 'w'); raise SystemExit(1)"
    done = run(tmp_path / "log", "", "--beside", sys.executable, "-c", beside)
    assert (done.returncode, made.exists()) == (0, True)


def test_a_build_that_fails_ends_what_runs_beside(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = run(
        tmp_path / "log",
        "raise SystemExit(3)",
        *("--beside", sys.executable, "-c", "import time; time.sleep(50)"),
    )
    assert done.returncode == 3
    assert time.monotonic() - begun < 30


def test_a_terminal_shows_one_line_in_place(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    script = "print('[1/4] a', flush=True); print('[2/4] b', flush=True)"
    child = pexpect.spawn(
        sys.executable,
        [str(PROGRAM), str(tmp_path / "log"), sys.executable, "-c", script],
        encoding="utf-8",
        timeout=60,
    )
    child.expect_exact("\r\x1b[Kllama.cpp: 25 % compiled after 0:00")
    child.expect_exact("\r\x1b[Kllama.cpp: 50 % compiled after 0:00")
    child.expect_exact("\r\x1b[Kllama.cpp: built in")
    child.expect(pexpect.EOF)
