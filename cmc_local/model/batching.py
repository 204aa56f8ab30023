"""Many replies at once: each has a slot, and all of them have one step together.

    submit -> a free slot, best the one that remembers the prompt's beginning -> step, step -> end

A reply that ends frees its slot for the next request at once; nobody waits for the others of "its"
batch (continuous batching). Each request has its own adapters, strengths and sampling. Who waits
for a slot, and whose turn it is, is the business of `shared.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.errors import UsageError
from cmc_local.model.replies import FinishReason, Piece, Reply, Sampler
from cmc_local.model.requests import Request
from cmc_local.settings import Sampling
from cmc_local.text.alignment import common_prefix

Outcome = tuple[int, Piece | UsageError]
"""A request's number, and what came of it."""


class Batch:
    """The replies under way on one engine. Belongs to one thread."""

    def __init__(
        self, engine: Engine, slots: Sequence[Slot], make_sampler: Callable[[Sampling], Sampler]
    ) -> None:
        self._engine = engine
        self._free = deque(slots)  # the one that rested longest first
        self._make_sampler = make_sampler
        self._replies: dict[int, Reply] = {}
        self._cancelled: set[int] = set()
        self._next = 0

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._replies)

    @property
    def free(self) -> int:
        """Slots that no request has."""
        return len(self._free)

    def submit(self, request: Request, sampler: Sampler | None = None) -> int:
        """Give a request a free slot; its number in what `step` returns.

        With a sampler made before, or a new one. Raises UsageError where no slot is free.
        """
        if not self._free:
            raise UsageError("no slot is free: step until a reply ends")
        sampler = sampler or self._make_sampler(request.sampling)
        slot = max(self._free, key=lambda slot: common_prefix(slot.cached, request.tokens))
        self._free.remove(slot)
        self._replies[self._next] = Reply(request, self._engine, slot, sampler)
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        """End a request at the next step; nothing happens to one that is over."""
        if number in self._replies:
            self._cancelled.add(number)

    def step(self) -> list[Outcome]:
        """Take every reply further; the pieces that came, by the numbers of their requests.

        The last piece of each request has a finish reason. A request whose grammar allows nothing
        ends in a UsageError instead; any other error is raised, and ends all that are under way.
        """
        try:
            outcomes = self._begin()
            outcomes += self._end_cancelled_and_full()
            outcomes += self._read()
            outcomes += self._write()
        except BaseException:
            self.clear()
            raise
        return outcomes

    def clear(self) -> None:
        """End all that is under way; nobody is told."""
        for number in list(self._replies):
            self._end(number)

    def _begin(self) -> list[Outcome]:
        new = [(number, reply) for number, reply in self._replies.items() if not reply.begun]
        return [(number, piece) for number, reply in new for piece in reply.begin()]

    def _end_cancelled_and_full(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for number, reply in list(self._replies.items()):
            if number in self._cancelled:
                outcomes.append(self._end(number, "cancelled"))
            elif reply.run is not None and not self._engine.has_room(reply.run):
                outcomes.append(self._end(number, "length"))
        return outcomes

    def _read(self) -> list[Outcome]:
        """Read on in one of the prompts that are to be given back.

        One a step and by turns, so that neither replies nor cancellations wait for many.
        """
        number = next((number for number, one in self._replies.items() if one.reading), None)
        if number is None:
            return []
        reply = self._replies[number] = self._replies.pop(number)  # behind the others
        outcomes: list[Outcome] = [(number, piece) for piece in reply.read()]
        if reply.reason is not None:
            outcomes.append(self._end(number))
        return outcomes

    def _write(self) -> list[Outcome]:
        """One step of all replies."""
        writing = [(n, one, one.run) for n, one in self._replies.items() if one.run is not None]
        if not writing:
            return []
        begun = perf_counter()
        chosen = self._engine.step([run for _, _, run in writing])
        spent = perf_counter() - begun
        outcomes: list[Outcome] = []
        for (number, reply, run), tokens in zip(writing, chosen, strict=True):
            run.timings.total_seconds += spent
            if run.failed is not None:
                self._end(number)
                outcomes.append((number, run.failed))
                continue
            if (piece := reply.add(tokens)) is not None:
                outcomes.append((number, piece))
            if reply.reason is not None:
                outcomes.append(self._end(number))
        return outcomes

    def _end(self, number: int, reason: FinishReason = "cancelled") -> tuple[int, Piece]:
        """Free the slot; the reply's last piece."""
        reply = self._replies.pop(number)
        self._cancelled.discard(number)
        self._free.append(reply.slot)
        return number, reply.end(reason)
