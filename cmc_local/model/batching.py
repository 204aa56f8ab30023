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

from cmc_local.engine.logprobs import Watch
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.replies import FinishReason, Piece, Reply
from cmc_local.engine.step import Chooser, Engine, Run, Slot
from cmc_local.errors import UsageError
from cmc_local.model.echo import Reading
from cmc_local.settings import Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.steer.steering import ActiveSteering, common_prefix
from cmc_local.text.alignment import DeltaPrompt

Outcome = tuple[int, Piece | UsageError]
"""A request's number, and what came of it."""


class Sampler(Chooser, Protocol):
    """A native sampler chain."""

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Acting:
    """An adapter that acts on a request."""

    adapter: LoadedAdapter
    alpha: float
    prompt: DeltaPrompt
    given: bytes = b""
    """What the answer begins with, at the end of the base model's prompt."""
    given_before_echo: bytes = b""
    """What of it comes before the tokens that are read with shifts."""

    def on(self, sequence: int, *, echo: bool = False) -> ActiveSteering:
        """Its steering on one of the base model's sequences."""
        return ActiveSteering(
            self.adapter.steerings[sequence],
            self.adapter.mapped,
            self.alpha,
            self.prompt,
            self.given_before_echo if echo else self.given,
        )


@dataclass(frozen=True)
class Echo:
    """A prompt that is given back."""

    shifted: int
    """The token from which on the shifts act."""
    text: str


@dataclass(frozen=True, eq=False)
class Request:
    """What one reply is to be."""

    tokens: Sequence[int]
    """The base model's prompt."""
    acting: Sequence[Acting]
    sampling: Sampling
    drafts: int = 0
    """How many tokens are drafted for a step; 0 drafts none."""
    top_logprobs: int | None = None
    """Alternatives that each token's details name; None: no details."""
    plain: bool = False
    """Whether details also say what the base model alone would say."""
    echo: Echo | None = None
    """How the prompt is given back first; None: it is not."""

    def watch(self) -> Watch | None:
        """What looks at the rows that its tokens are chosen from."""
        return None if self.top_logprobs is None else Watch(self.top_logprobs, plain=self.plain)

    def begin(
        self, engine: Engine, slot: Slot, chooser: Chooser, watch: Watch | None = None
    ) -> Run:
        """Its run, in this slot."""
        active = [one.on(slot.sequence) for one in self.acting]
        guesser = PromptLookup(self.tokens, drafts=self.drafts) if self.drafts else None
        return engine.begin(slot, self.tokens, chooser, active, guesser=guesser, watcher=watch)

    def read(self, engine: Engine, slot: Slot) -> Reading | None:
        """The reading of its prompt, in this slot; None where it is not to be given back."""
        if self.echo is None:
            return None
        active = [one.on(slot.sequence, echo=True) for one in self.acting]
        return Reading(engine, slot, self.tokens, self.echo.shifted, active, self.watch())


@dataclass(eq=False)
class _Flight:
    """A request in a slot."""

    number: int
    request: Request
    slot: Slot
    sampler: Sampler
    reading: Reading | None = None
    reply: Reply | None = None
    """None while the prompt is still to be given back."""


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

    def submit(self, request: Request, sampler: Sampler | None = None) -> int:
        """Queue a request, with a sampler made before or a new one; its number in `step`'s."""
        sampler = sampler or self._make_sampler(request.sampling)
        self._queue.append((self._next, request, sampler))
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        """End a request at the next step; nothing happens to one that is over."""
        known = {one for one, _, _ in self._queue} | {flight.number for flight in self._flights}
        self._cancelled |= {number} & known

    def step(self) -> list[Outcome]:
        """Take every reply further; the pieces that came, by the numbers of their requests.

        The last piece of each request has a finish reason. A request whose grammar allows nothing
        ends in a UsageError instead; any other error is raised, and ends all that are in flight.
        """
        try:
            pieces = self._drop_cancelled()
            self._admit()
            pieces += self._read()
            pieces += self._end_full()
            pieces += self._reply()
        except BaseException:
            self.clear()
            raise
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
            flight = _Flight(number, request, slot, sampler)
            self._flights.append(
                flight
            )  # known before what may go wrong, so that it can be dropped
            flight.reading = request.read(self._engine, slot)
            if flight.reading is None:
                flight.reply = self._begin(flight)

    def _begin(self, flight: _Flight) -> Reply:
        request, watch = flight.request, flight.request.watch()
        run = request.begin(self._engine, flight.slot, flight.sampler, watch)
        return Reply(run, self._engine.base.vocabulary, request.sampling, watch)

    def _read(self) -> list[Outcome]:
        """Read on in one of the prompts that are to be given back; it, if it was read whole.

        One a step and by turns, so that neither replies nor cancellations wait for many.
        """
        flight = next((one for one in self._flights if one.reading is not None), None)
        if flight is None or flight.reading is None:
            return []
        self._flights.remove(flight)
        self._flights.append(flight)
        reading, request = flight.reading, flight.request
        if reading.step():
            return []
        flight.reading = None
        assert request.echo is not None
        details = tuple(reading.details)
        echoed = Piece(request.echo.text, tuple(request.tokens), details=details, echo=True)
        flight.reply = self._begin(flight)
        reading.book(flight.reply.run.timings)
        if request.sampling.max_tokens:
            return [(flight.number, echoed)]
        return [(flight.number, echoed), self._land(flight, "length")]

    def _reply(self) -> list[Outcome]:
        """One step of all replies."""
        replies = [(flight, flight.reply) for flight in self._flights if flight.reply is not None]
        if not replies:
            return []
        begun = perf_counter()
        chosen = self._engine.step([reply.run for _, reply in replies])
        spent = perf_counter() - begun
        pieces: list[Outcome] = []
        for (flight, reply), tokens in zip(replies, chosen, strict=True):
            reply.run.timings.total_seconds += spent
            if reply.run.failed is not None:
                self._land(flight)
                pieces.append((flight.number, reply.run.failed))
                continue
            if (piece := reply.take(tokens)) is not None:
                pieces.append((flight.number, piece))
            if reply.reason is not None:
                pieces.append(self._land(flight))
        return pieces

    def _drop_cancelled(self) -> list[Outcome]:
        cancelled, self._cancelled = self._cancelled, set()
        if not cancelled:
            return []
        pieces: list[Outcome] = []
        for entry in [entry for entry in self._queue if entry[0] in cancelled]:
            self._queue.remove(entry)
            entry[2].close()
            pieces.append((entry[0], Piece("", finish_reason="cancelled")))
        for flight in [flight for flight in self._flights if flight.number in cancelled]:
            pieces.append(self._land(flight, "cancelled"))
        return pieces

    def _end_full(self) -> list[tuple[int, Piece]]:
        full = [
            flight
            for flight in self._flights
            if flight.reply is not None and not self._engine.has_room(flight.reply.run)
        ]
        return [self._land(flight, "length") for flight in full]

    def _land(self, flight: _Flight, reason: FinishReason = "cancelled") -> tuple[int, Piece]:
        """Free the slot; the reply's last piece."""
        self._flights.remove(flight)
        self._engine.end(flight.slot)
        flight.sampler.close()
        self._free.append(flight.slot)
        if flight.reply is None:
            return flight.number, Piece("", finish_reason=reason)
        return flight.number, flight.reply.last(reason)
