"""One ask of a SharedModel from the moment it is made, and what its worker says of itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from time import monotonic

from cmc_local.engine.replies import Piece
from cmc_local.engine.step import StepTimes
from cmc_local.model.batching import Sampler
from cmc_local.model.requests import Prepared

Heard = Piece | Exception


@dataclass(frozen=True, slots=True)
class State:
    """What the worker is doing."""

    alive: bool
    """Whether it can still take asks."""
    busy: bool
    """Whether it is within a step, or has something to step."""
    active: int
    """Replies under way."""
    waiting: int
    """Asks that have no slot yet."""
    steps: int
    """Steps taken and orders carried out so far; a busy worker that is well goes on counting."""
    times: StepTimes
    """Over all steps so far."""


@dataclass(eq=False)
class Ticket:
    """One ask from the moment it was made."""

    hear: Callable[[Heard], None]
    group: Hashable
    since: float = field(default_factory=monotonic)
    adapters: frozenset[str] = frozenset()
    prepared: Prepared | None = None
    sampler: Sampler | None = None
    queued: bool = False
    cancelled: bool = False
    over: bool = False

    def close(self) -> None:
        """Free its sampler; more than once is fine."""
        if self.sampler is not None:
            self.sampler.close()

    def tell(self, heard: Heard) -> None:
        """Let whoever asked hear it; who cannot (an event loop that has ended) wants no more."""
        try:
            self.hear(heard)
        except Exception:
            self.cancelled = True

    def end(self, last: Heard) -> None:
        """The last that is heard of it."""
        self.over = True
        self.tell(last)
