"""Many replies at once: requests wait for a slot, and all that have one step together.

    submit -> queue -> a free slot, best the one that remembers the prompt's beginning -> step, step

A reply that ends frees its slot for the next request at once; nobody waits for the others of "its"
batch (continuous batching). Each request has its own adapters, strengths and sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from cmc_local.alignment import DeltaPrompt
from cmc_local.engine import Chooser, Engine, Run, Slot
from cmc_local.loaded_adapter import LoadedAdapter
from cmc_local.replies import FinishReason, Piece, Reply
from cmc_local.settings import Sampling
from cmc_local.speculation import PromptLookup
from cmc_local.steering import ActiveSteering, common_prefix


class Sampler(Chooser, Protocol):
    """A native sampler chain."""

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Acting:
    """An adapter that acts on a request."""

    adapter: LoadedAdapter
    alpha: float
    prompt: DeltaPrompt

    def on(self, sequence: int) -> ActiveSteering:
        """Its steering on one of the base model's sequences."""
        return ActiveSteering(
            self.adapter.steerings[sequence],
            self.adapter.mapped,
            self.alpha,
            self.prompt,
            self.adapter.costs,
        )


@dataclass(frozen=True, eq=False)
class Request:
    """What one reply is to be."""

    tokens: Sequence[int]
    """The base model's prompt."""
    acting: Sequence[Acting]
    sampling: Sampling
    guesses: bool = False
    """Whether guessed tokens are checked several at once."""

    def begin(self, engine: Engine, slot: Slot, chooser: Chooser) -> Run:
        """Its run, in this slot."""
        active = [one.on(slot.sequence) for one in self.acting]
        guesser = PromptLookup(self.tokens) if self.guesses else None
        return engine.begin(slot, self.tokens, chooser, active, guesser=guesser)


@dataclass(eq=False)
class _Flight:
    """A request in a slot."""

    number: int
    reply: Reply
    sampler: Sampler


class Batch:
    """The replies in flight on one engine. Belongs to one thread."""

    def __init__(
        self, engine: Engine, slots: Sequence[Slot], make_sampler: Callable[[Sampling], Sampler]
    ) -> None:
        self._engine = engine
        self._free = deque(slots)  # the one that rested longest first
        self._make_sampler = make_sampler
        self._queue: deque[tuple[int, Request, Sampler]] = deque()
        self._flights: list[_Flight] = []
        self._cancelled: set[int] = set()
        self._next = 0

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return len(self._flights)

    @property
    def free(self) -> int:
        """Slots that no request has."""
        return len(self._free)

    def submit(self, request: Request) -> int:
        """Queue a request; its number in what `step` gives."""
        self._queue.append((self._next, request, self._make_sampler(request.sampling)))
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        """End a request at the next step; nothing happens to one that is over."""
        known = {one for one, _, _ in self._queue} | {flight.number for flight in self._flights}
        self._cancelled |= {number} & known

    def step(self) -> list[tuple[int, Piece]]:
        """Take every reply further; the pieces that came, by the numbers of their requests.

        The last piece of each request has a finish reason. An error ends all that are in flight.
        """
        pieces = self._drop_cancelled()
        self._admit()
        pieces += self._end_full()
        if not self._flights:
            return pieces
        begun = perf_counter()
        try:
            chosen = self._engine.step([flight.reply.run for flight in self._flights])
        except BaseException:
            self.clear()
            raise
        spent = perf_counter() - begun
        for flight, tokens in zip(list(self._flights), chosen, strict=True):
            flight.reply.run.timings.total_seconds += spent
            if (piece := flight.reply.take(tokens)) is not None:
                pieces.append((flight.number, piece))
            if flight.reply.reason is not None:
                pieces.append(self._land(flight))
        return pieces

    def clear(self) -> None:
        """Drop everything, in flight or not."""
        for _, _, sampler in self._queue:
            sampler.close()
        self._queue.clear()
        for flight in list(self._flights):
            self._land(flight)

    def _admit(self) -> None:
        while self._queue and self._free:
            number, request, sampler = self._queue.popleft()
            slot = max(self._free, key=lambda slot: common_prefix(slot.cached, request.tokens))
            self._free.remove(slot)
            run = request.begin(self._engine, slot, sampler)
            vocabulary = self._engine.base.vocabulary
            self._flights.append(_Flight(number, Reply(run, vocabulary, request.sampling), sampler))

    def _drop_cancelled(self) -> list[tuple[int, Piece]]:
        cancelled, self._cancelled = self._cancelled, set()
        if not cancelled:
            return []
        pieces = []
        for entry in [entry for entry in self._queue if entry[0] in cancelled]:
            self._queue.remove(entry)
            entry[2].close()
            pieces.append((entry[0], Piece("", finish_reason="cancelled")))
        for flight in [flight for flight in self._flights if flight.number in cancelled]:
            pieces.append(self._land(flight, "cancelled"))
        return pieces

    def _end_full(self) -> list[tuple[int, Piece]]:
        full = [one for one in self._flights if not self._engine.has_room(one.reply.run)]
        return [self._land(flight, "length") for flight in full]

    def _land(self, flight: _Flight, reason: FinishReason = "cancelled") -> tuple[int, Piece]:
        """Free the slot; the reply's last piece."""
        self._flights.remove(flight)
        slot = flight.reply.run.slot
        self._engine.end(slot)
        flight.sampler.close()
        self._free.append(slot)
        return flight.number, flight.reply.last(reason)
