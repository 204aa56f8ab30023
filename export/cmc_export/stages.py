"""Commands one after another, each passed over where its result is there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmc_local.errors import TrainingError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """A command (what stands after `cmc-local`), and the file or folder that it makes."""

    result: Path
    command: str


def run(stage: Stage, say: Say) -> None:
    """Run a stage's command in a process of its own, unless its result is there.

    Raises TrainingError where it fails; what it says goes to this process's streams.
    """
    if stage.result.exists():
        return
    say(f"cmc-local {stage.command}")
    words = [sys.executable, "-m", "cmc_local", *shlex.split(stage.command)]
    code = subprocess.run(words, check=False).returncode
    if code:
        raise TrainingError(f"`cmc-local {stage.command}` ended with {code}: see above")
