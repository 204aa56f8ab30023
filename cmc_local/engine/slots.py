"""A slot is a conversation's place in the base model's caches, a run the reply being written there.

Data that the engine's parts share; `engine/step.py` draws the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.engine.delta_thread import Deltas
from cmc_local.engine.logprobs import LogprobRecorder
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.timings import Timings
from cmc_local.errors import UsageError
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


@dataclass(eq=False)
class Slot:
    """A sequence of the base model, and what its cache holds."""

    sequence: int
    cached: list[int] = field(default_factory=list)
    """The tokens that the base model's cache holds."""
    stale: bool = False
    """After an error nobody knows what the cache holds: the next run starts anew."""
    run: Run | None = None
    """The run that owns the caches now."""


@dataclass(eq=False)
class Run:
    """One reply under way, as tokens."""

    slot: Slot
    chooser: Chooser
    deltas: Deltas
    prompt: tuple[int, ...]
    pending: list[int]
    """Tokens to decode next: the prompt, later the one token chosen last."""
    lookup: PromptLookup | None = None
    """What drafts its next tokens."""
    recorder: LogprobRecorder | None = None
    failed: UsageError | None = None
    """Why no token can be chosen any more, which ends this run alone."""
    timings: Timings = field(default_factory=Timings)

    @property
    def replying(self) -> bool:
        """Whether the prompt is behind."""
        return self.timings.generated_tokens > 0 and len(self.pending) == 1
