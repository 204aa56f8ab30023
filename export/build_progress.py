"""Run the command that builds llama.cpp and say on one line how far it is; `make` calls this.

    python export/build_progress.py python -m pip install -v ...

Ninja says `[12/74]` for each compiled file and Make says `[ 16%]`; both stand in what pip prints
under -v. All of it goes to a log file, and its end is shown if the command fails. Standard library
only: nothing is installed yet when this runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NINJA = re.compile(r"^\s*\[(\d+)/(\d+)\]")
MAKE = re.compile(r"^\s*\[\s*(\d+)%\]")
TAIL = 40  # lines of the log that a failure shows
EVERY = 10.0  # seconds between two lines where no terminal shows one line in place


def share_done(line: str) -> float | None:
    """How much of the build is done after this line of its output, 0 to 1; None if it does not say.

    >>> share_done("  [37/74] Building CXX object llama.cpp.o")
    0.5
    """
    if found := NINJA.match(line):
        return int(found[1]) / max(1, int(found[2]))
    if found := MAKE.match(line):
        return int(found[1]) / 100
    return None


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def progress(share: float, elapsed: float) -> str:
    """One line: the share done, the time it took, and what is left if the rest goes as fast.

    >>> progress(0.25, 30.0)
    'llama.cpp: 25 % compiled after 0:30, about 1:30 left'
    """
    text = f"llama.cpp: {share:.0%} compiled".replace("%", " %") + f" after {minutes(elapsed)}"
    return text + (f", about {minutes(elapsed / share - elapsed)} left" if 0 < share < 1 else "")


def main(command: list[str]) -> int:
    """Run it; its exit status."""
    in_place = sys.stderr.isatty()
    log = Path(tempfile.gettempdir()) / "cmc-local-llama.cpp.log"
    began = time.monotonic()
    compiling: float | None = None  # when the first file was compiled
    shown = 0.0
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            kept.write(line)
            share = share_done(line)
            if share is None:
                continue
            now = time.monotonic()
            compiling = now if compiling is None else compiling
            if in_place or now - shown >= EVERY:
                text = progress(share, now - compiling)
                print(f"\r\x1b[K{text}" if in_place else text, end="" if in_place else "\n",
                      file=sys.stderr, flush=True)  # fmt: skip
                shown = now
    if in_place:
        print("\r\x1b[K", end="", file=sys.stderr)
    if running.returncode:
        print("".join(log.read_text(encoding="utf-8").splitlines(True)[-TAIL:]), file=sys.stderr)
        print(f"llama.cpp was not built; everything that was printed: {log}", file=sys.stderr)
    else:
        print(f"llama.cpp: built in {minutes(time.monotonic() - began)}", file=sys.stderr)
    return running.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
