"""Run the command that builds llama.cpp and say on one line how far it is; `make` calls this.

    python export/build_progress.py LOG  pip install -v ...  --beside  pip install ...

Ninja says `[12/74]` for each compiled file and Make says `[ 16%]`; both stand in what pip prints
under -v. All of it goes to the file LOG, and its end is shown if the command fails. The command
after `--beside` fetches what is needed next while the processor compiles; whether it succeeds is
for the next step to find out. Standard library only: nothing is installed yet when this runs.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NINJA = re.compile(r"^\s*\[(\d+)/(\d+)\]")
MAKE = re.compile(r"^\s*\[\s*(\d+)%\]")
TAIL = 40  # lines of the log that a failure shows
EVERY = 10.0  # seconds between two lines where no terminal shows one line in place
SURE = 5.0  # seconds before an estimate is worth anything
BESIDE = "--beside"


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
    left = elapsed / share - elapsed if share else 0.0
    return text + (f", about {minutes(left)} left" if left and elapsed >= SURE else "")


@contextlib.contextmanager
def running_beside(command: Sequence[str]) -> Iterator[None]:
    """Run a command meanwhile, unheard; wait for its end, or end it where the build fails."""
    if not command:
        yield
        return
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as beside:
        try:
            yield
        except BaseException:
            beside.terminate()
            raise


def build(command: Sequence[str], log: Path) -> int:
    """Run the build, its output into `log` and its progress on stderr; its exit status."""
    in_place = sys.stderr.isatty()
    start, end = ("\r\x1b[K", "") if in_place else ("", "\n")
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
                text = start + progress(share, now - compiling)
                print(text, end=end, file=sys.stderr, flush=True)
                shown = now
    print(start, end="", file=sys.stderr)
    return running.returncode


def main(arguments: Sequence[str]) -> None:
    """LOG, the build's command, and what runs beside it; exits with the build's own status."""
    log, words = Path(arguments[0]), list(arguments[1:])
    cut = words.index(BESIDE) if BESIDE in words else len(words)
    began = time.monotonic()
    with running_beside(words[cut + 1 :]):
        status = build(words[:cut], log)
        if status:
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            print("".join(lines[-TAIL:]), file=sys.stderr)
            print(f"llama.cpp was not built; everything that was printed: {log}", file=sys.stderr)
            sys.exit(status)  # which ends what runs beside, too
        print(f"llama.cpp: built in {minutes(time.monotonic() - began)}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
