"""What an arm is: one way to write the same tokens, timed.

    arm = ...                  something with a name that holds its model
    arm.run() -> Sample        back to the prompt, one untimed token, then the timed ones

In every arm the model does all the work of a step, the choice of a token included; the token taken
is the text's (`Passage.reply`), so all arms see one text and the alignment meets real words.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, Protocol

Tokens = tuple[int, ...]
Kind = Literal[
    "plain",
    "steered",
    "serial",
    "overlapped",
    "alone",
    "stock",
    "naive",
    "plain+guesses",
    "steered+guesses",
]
"""How a passage is written; `steered` is as the runner itself decides, `serial` or overlapped.

`alone` is plain in a process of its own, as `stock` and `naive` are in one of theirs.
"""
KINDS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "plain": ("plain",),
    "steered": ("steered",),
    "serial": ("serial",),
    "overlapped": ("overlapped",),
    "stock": ("alone", "stock"),
    "naive": ("naive",),
    "speculated": ("plain+guesses", "steered+guesses"),
}
"""What may be asked for, by name."""
USUAL: Final = tuple(name for name in KINDS if name != "speculated")
"""What is measured unasked: nobody guesses without being told to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an arm stands in the table: how it writes, and what."""

    kind: Kind
    text: str
    """The name of the text."""
    context: int
    """Tokens of the prompt."""
    sequences: int = 1
    """How many are written at once."""

    def __str__(self) -> str:
        many = f" x {self.sequences}" if self.sequences > 1 else ""
        return f"{self.kind}{many}, {self.text} after {self.context}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run; seconds of wall clock."""

    seconds: float
    tokens: int
    """Tokens of all the sequences together, the untimed ones left out."""
    emitted: tuple[Tokens, ...] = ()
    """What each sequence wrote, the untimed first token included."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds by part of a step, where the arm tells them apart."""


class Arm(Protocol):
    """One way to write a passage."""

    @property
    def place(self) -> Place: ...

    def run(self) -> Sample:
        """Go back to the prompt, then write the passage and time it.

        What is still in the caches of the prompt is kept, and nothing but the steps after the
        first token is timed.
        """
        ...


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile, as `timeit` has it: it would hit one arm or another."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def digest(emitted: tuple[Tokens, ...]) -> str:
    """A short fingerprint of what was written; alike in arms that wrote alike."""
    return sha256(repr(emitted).encode()).hexdigest()[:12]
