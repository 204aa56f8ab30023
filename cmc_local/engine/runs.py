"""Replies under way: their places in the caches, what is left to decode, what they cost so far.

Data that the engine's parts share; `engine/step.py` draws the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.errors import UsageError
from cmc_local.steer.steering import ActiveSteering, Steering
from cmc_local.text.vocabulary import Vocabulary


class Base(Protocol):
    """What the engine asks of a base model; `BaseModel` is one, tests have a fake."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def can_roll_back(self) -> bool: ...
    def decode_spans(self, spans: Sequence[Span]) -> None: ...
    def logits(self, i: int = -1) -> NDArray[np.float32]: ...
    def truncate(self, sequence: int, length: int) -> bool: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def clear(self, sequence: int) -> None: ...


class Chooser(Protocol):
    """Chooses the next token from the base model's logits, the shifts already added."""

    def sample(self, i: int = -1) -> int: ...


class Watcher(Protocol):
    """Looks at the rows that tokens are chosen from; `details.Watch` is one."""

    def before(self, logits: NDArray[np.float32]) -> None: ...
    def after(self, logits: NDArray[np.float32], token: int) -> None: ...


@dataclass
class StepTimes:
    """Where the time of steps went; seconds of wall clock."""

    decode_seconds: float = 0.0
    """Decoding replies with the base model."""
    delta_seconds: float = 0.0
    """Aligning and running the deltas; where overlapped, beside the base model."""
    align_seconds: float = 0.0
    """Of these: finding the delta's tokens of what was said."""
    session_seconds: float = 0.0
    """Of these: the deltas' networks; what is left are rows kept and mid-token look-ups."""
    wait_seconds: float = 0.0
    """Waiting for the deltas after the base model was done."""
    map_seconds: float = 0.0
    """Mapping the shifts and adding them."""
    sample_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass
class Timings(StepTimes):
    """What a reply cost; a step that it shares with others counts in full."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that were in the base model's cache already."""
    generated_tokens: int = 0
    guessed_tokens: int = 0
    """Of these, the ones that came from right guesses."""
    prompt_seconds: float = 0.0
    """Decoding the prompt with the base model."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the prompt's time aside."""
        seconds = self.total_seconds - self.prompt_seconds
        return self.generated_tokens / seconds if seconds > 0 else 0.0


@dataclass(eq=False)
class Slot:
    """A conversation's place: a sequence of the base model, and a steering for each adapter."""

    sequence: int
    steerings: tuple[Steering, ...] = ()
    cached: list[int] = field(default_factory=list)
    """The tokens that the base model's cache holds."""
    stale: bool = False
    """After an error nobody knows what the caches hold: the next run starts anew."""
    run: Run | None = None
    """The run that owns the caches now."""


@dataclass(eq=False)
class Run:
    """One reply under way."""

    slot: Slot
    chooser: Chooser
    active: tuple[ActiveSteering, ...]
    prompt: tuple[int, ...]
    pending: list[int]
    """Tokens to decode next: the prompt, later the one token chosen last."""
    guesser: PromptLookup | None = None
    watcher: Watcher | None = None
    failed: UsageError | None = None
    """Why no token can be chosen any more, which ends this run alone."""
    begun: bool = False
    """Whether the deltas have been told of the prompt."""
    untold: int | None = None
    """The token chosen last, while the deltas have not been told of it."""
    kept: int = 1
    """How many of the pieces that the deltas were given last came true."""
    job: Future[None] | None = None
    """What the deltas are doing for the pending tokens."""
    timings: Timings = field(default_factory=Timings)

    @property
    def replying(self) -> bool:
        """Whether the prompt is behind."""
        return self.timings.generated_tokens > 0 and len(self.pending) == 1
