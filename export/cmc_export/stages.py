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
    module: str = "cmc_local"
    """What `python -m` runs it with."""

    @property
    def line(self) -> str:
        """The command as one types it."""
        program = "cmc-local" if self.module == "cmc_local" else f"python -m {self.module}"
        return f"{program} {self.command}"


def run(stage: Stage, say: Say) -> None:
    """Run a stage's command in a process of its own, unless its result is there.

    Raises TrainingError where it fails; what it says goes to this process's streams.
    """
    if stage.result.exists():
        return
    say(stage.line)
    words = [sys.executable, "-m", stage.module, *shlex.split(stage.command)]
    code = subprocess.run(words, check=False).returncode
    if code:
        raise TrainingError(f"`{stage.line}` ended with {code}: see above")
