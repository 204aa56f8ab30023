"""The project's own texts to measure on: prompts, and the replies that every arm writes.

    prose        a plain description that hardly repeats itself; prompt and reply are one text
    editing      a letter with six mistakes; the reply is the letter without them
    extraction   an order book; the reply copies fields of some of its lines

Each is a file beside this one, prompt and reply parted by a line `===`. Read when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal, get_args

from cmc_local.errors import UsageError

Name = Literal["prose", "editing", "extraction"]

NAMES: Final[tuple[Name, ...]] = get_args(Name)
REPEATING: Final[tuple[Name, ...]] = ("editing", "extraction")
"""Replies that are mostly found in their prompts, so that guessing from those pays."""

_BORDER = "===\n"


@dataclass(frozen=True)
class Sample:
    """What is asked, and what is written in answer to it."""

    name: str
    prompt: str
    reply: str

    @property
    def text(self) -> str:
        """Both, as one text."""
        return self.prompt + self.reply


def sample(name: Name) -> Sample:
    """One of the bundled texts; UsageError for any other name."""
    if name not in NAMES:
        raise UsageError(f"no bundled text {name!r}: choose one of {', '.join(NAMES)}")
    file = resources.files("cmc_local.bench").joinpath(f"{name}.txt")
    prompt, border, reply = file.read_text(encoding="utf-8").partition(_BORDER)
    assert border, f"{name}.txt has no border between prompt and reply"
    return Sample(name, prompt, reply)
