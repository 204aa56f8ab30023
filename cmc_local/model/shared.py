"""SharedModel: one steered model for many threads, tasks and clients.

    any thread   ask --.                               ,-> pieces, to whoever asked
    preparer           `-> Request -> FairQueue -------.   |
    worker             orders, cancellations           `-> Batch.step

The worker thread owns the models; between two steps it looks for what is new and carries out one
order (an adapter comes or goes, a text is embedded). Asks of one group take turns with those of
others, so that whoever wants a hundred replies does not hold up whoever wants one.

    >>> shared = SharedModel.load("llama.gguf", ["my-adapter"], limits=Limits(parallel=4))
    >>> ask = Ask(prompt=[{"role": "user", "content": "Who wrote Dune?"}], sampling=Sampling())
    >>> async for piece in shared.astream(ask): print(piece.text, end="")
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmc_local.engine.timings import StepTimes
from cmc_local.errors import ModelClosed, Overloaded, UsageError, WaitedTooLong
from cmc_local.lifetime import Closing
from cmc_local.model.batching import Batch
from cmc_local.model.queue import FairQueue, Heard, Ticket
from cmc_local.model.replies import Completion, Piece, completion
from cmc_local.model.requests import Ask
from cmc_local.model.steered import AdapterLike, BaseWithText, SteeredModel

Result = TypeVar("Result")
CLOSED = "the model has been closed: load it again"
STEP_SECONDS = 0.25
"""How long a part of a prompt may hold up the replies, and whoever wants to cancel."""


@dataclass(frozen=True, slots=True)
class State:
    """What the worker of a `SharedModel` is doing."""

    alive: bool
    """Whether it can still take asks."""
    busy: bool
    """Whether it is within a step, or has something to step."""
    active: int
    """Replies under way."""
    waiting: int
    """Asks that have no slot yet."""
    slots: int
    """Replies that are written at once."""
    steps: int
    """Steps taken and orders carried out so far; a busy worker that is well goes on counting."""
    times: StepTimes
    """Over all steps so far."""


class SharedModel(Closing):
    """Owns a `SteeredModel`, which nobody else may use. Every method may be called anywhere."""

    def __init__(
        self, model: SteeredModel, *, queue: int = 256, patience: float | None = None
    ) -> None:
        """At most `queue` asks wait for a slot, each at most `patience` seconds; None: for ever.

        An ask for which a slot is free does not wait.
        """
        self._model = model
        self._most_waiting = queue
        self._patience = patience
        self._changed = threading.Condition()
        # One, since each thread that uses a delta's tokenizer gets a cache of megabytes there.
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-prepare")
        self._waiting = FairQueue()
        self._active: dict[int, Ticket] = {}
        self._orders: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._news = self._closing = self._stepping = False
        self._refusal = ""  # why no more is taken; "" while it is
        self._slots = self._steps = 0
        self._worker = threading.Thread(target=self._work, name="cmc-worker", daemon=True)
        self._worker.start()

    @classmethod
    def load(
        cls,
        gguf: str | Path,
        adapters: Sequence[AdapterLike] = (),
        *,
        queue: int = 256,
        patience: float | None = None,
        **settings: Any,
    ) -> SharedModel:
        """Load a model and its adapters; `settings` are those of `SteeredModel.load`."""
        return cls(SteeredModel.load(gguf, adapters, **settings), queue=queue, patience=patience)

    # --- replies -----------------------------------------------------------------------------

    def stream(self, ask: Ask, *, group: Hashable = None) -> Iterator[Piece]:
        """The reply as it comes; closing the iterator cancels it.

        Asks of one `group` take turns with those of others; None is a group of its own.
        Raises UsageError for what cannot be done, Overloaded where too much is waiting
        (WaitedTooLong: it waited, and its patience ended) and ModelClosed at the end. An error of
        the models ends all replies under way with that error.
        """
        heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        ticket = Ticket(heard.put, group)
        try:
            self._submit(ask, ticket).result()
            while True:
                piece = heard.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._cancel(ticket)

    async def astream(self, ask: Ask, *, group: Hashable = None) -> AsyncIterator[Piece]:
        """The reply as it comes; closing the iterator or cancelling the task cancels it."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Heard] = asyncio.Queue()

        def hear(piece: Heard) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, piece)

        ticket = Ticket(hear, group)
        try:
            await asyncio.wrap_future(self._submit(ask, ticket))
            while True:
                piece = await heard.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._cancel(ticket)

    def generate(self, ask: Ask, *, group: Hashable = None) -> Completion:
        """The whole reply."""
        return completion(piece for piece in self.stream(ask, group=group) if not piece.echo)

    async def agenerate(self, ask: Ask, *, group: Hashable = None) -> Completion:
        """The whole reply."""
        pieces = [piece async for piece in self.astream(ask, group=group)]
        return completion(piece for piece in pieces if not piece.echo)

    @property
    def base(self) -> BaseWithText:
        """The base model; its vocabulary and tokenizer may be used, its caches not."""
        return self._model.base

    @property
    def alphas(self) -> Mapping[str, float]:
        """The loaded adapters' own strengths."""
        return dict(self._model.alphas)

    def in_use(self, name: str) -> int:
        """How many asks an adapter acts on, waiting or under way."""
        with self._changed:
            return sum(one.uses(name) for one in [*self._active.values(), *self._waiting])

    def add(self, folder: str | Path, alpha: float | None = None) -> str:
        """Load one more adapter while replies go on; its name."""
        adapter = self._model.load_adapter(folder)
        attach = partial(self._model.attach, adapter, alpha)
        return self._prepare(lambda: self._order(attach)).result()  # no ask meets it half attached

    def remove(self, name: str) -> None:
        """Let go of an adapter that acts on nothing; UsageError for any other."""

        def remove() -> None:
            if count := self.in_use(name):
                raise UsageError(f"adapter {name} acts on {count} replies: wait until they end")
            self._model.remove(name)

        self._prepare(lambda: self._order(remove)).result()  # no ask is being prepared with it

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """The base model's tokens of a text."""
        work = partial(self.base.tokenize, text, special=special, bos=bos)
        return self._prepare(work).result()  # so that nobody frees the model meanwhile

    def count_prompt(self, ask: Ask) -> int:
        """How many base tokens an ask's prompt has, as it would be decoded."""
        return self._prepare(lambda: len(self._model.request(ask).tokens)).result()

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """What base tokens spell; control tokens spell nothing."""
        texts = self.base.vocabulary.tokens
        if (wrong := next((one for one in tokens if not 0 <= one < len(texts)), None)) is not None:
            raise UsageError(f"token {wrong} is not in the base model's vocabulary")
        return b"".join(texts[token] for token in tokens)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The base model's vectors of some texts, given as tokens: (n, d) float32 of length 1."""
        if not texts:
            raise UsageError("there is nothing to embed: give at least one text")
        # One order a text, so that replies go on between them.
        return np.stack([self._order(partial(self.base.embed, tokens)) for tokens in texts])

    # --- the worker's life -------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the worker is doing now."""
        with self._changed:
            waiting = len(self._waiting)
            return State(
                alive=self._worker.is_alive() and not self._refusal,
                busy=self._stepping or bool(waiting or self._active),
                active=len(self._active),
                waiting=waiting,
                slots=self._slots,
                steps=self._steps,
                times=self._model.times,
            )

    def close(self) -> None:
        """End what is under way and free the models; more than once is fine."""
        with self._changed:
            self._refusal = self._refusal or CLOSED
            self._closing = True
            self._tell()
        self._worker.join()
        self._preparer.shutdown()  # it may still be tokenising with the base model
        self._model.close()

    # --- the asking side ---------------------------------------------------------------------

    def _submit(self, ask: Ask, ticket: Ticket) -> Future[None]:
        self._check_room()
        return self._prepare(partial(self._prepare_ask, ask, ticket))

    def _prepare(self, work: Callable[[], Result]) -> Future[Result]:
        """Let the preparer do something; one thing at a time, while replies go on."""
        with self._changed:
            if self._closing:
                raise ModelClosed(self._refusal)
            return self._preparer.submit(work)

    def _prepare_ask(self, ask: Ask, ticket: Ticket) -> None:
        """Make a request of an ask and queue it, unless nobody waits for it any more."""
        if ticket.cancelled:
            return
        self._check_room()
        try:
            ticket.request = self._model.request(ask)
            ticket.sampler = self._model.sampler(ask.sampling)
            with self._changed:
                self._check_room()
                if not ticket.cancelled:
                    self._waiting.put(ticket)
                    ticket.queued = True
                    self._tell()
        finally:
            if not ticket.queued:
                ticket.close()

    def _check_room(self) -> None:
        with self._changed:
            if self._refusal:
                raise ModelClosed(self._refusal)
            free = self._slots - len(self._active)
            if len(self._waiting) - free >= self._most_waiting:
                raise Overloaded(f"{self._most_waiting} requests are waiting: try again later")

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.cancelled = True
            if ticket.over or not ticket.queued:
                ticket.close()
            else:
                self._tell()

    def _order(self, work: Callable[[], Result]) -> Result:
        """Let the worker do something between two steps."""
        done: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise ModelClosed(self._refusal)
            self._orders.append((work, done))
            self._tell()
        return done.result()

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()

    # --- the worker --------------------------------------------------------------------------

    def _work(self) -> None:
        with self._model.alone():
            batch = self._model.batch(step_seconds=STEP_SECONDS)
            self._slots = batch.free
            end = ModelClosed(CLOSED)
            try:
                while self._wait():
                    self._carry_out_order()
                    self._hear_cancellations(batch)
                    self._admit(batch)
                    self._step(batch)
            except BaseException as error:  # a bug: nobody may wait for ever because of it
                end = ModelClosed(f"the model's thread broke down ({error!r}): load it again")
                end.__cause__ = error
                raise
            finally:
                self._end(batch, end)

    def _wait(self) -> bool:
        """Wait for something to do; False when the model is being closed."""
        with self._changed:
            self._stepping = False
            self._changed.notify_all()
            if not (self._orders or self._active or self._waiting):
                self._changed.wait_for(lambda: self._news or self._closing)
            self._news, self._stepping = False, True
            return not self._closing

    def _carry_out_order(self) -> None:
        """One, so that replies go on however many there are."""
        if not self._orders:
            return
        work, done = self._orders.popleft()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        self._steps += 1

    def _hear_cancellations(self, batch: Batch) -> None:
        """Drop what nobody waits for any more, or what waited too long."""
        with self._changed:
            for number, ticket in self._active.items():
                if ticket.cancelled:
                    batch.cancel(number)
            for ticket in self._waiting.drop(lambda ticket: ticket.cancelled or self._late(ticket)):
                ticket.close()
                ticket.end(WaitedTooLong("no slot became free in time: try again later"))

    def _late(self, ticket: Ticket) -> bool:
        return self._patience is not None and monotonic() - ticket.since > self._patience

    def _admit(self, batch: Batch) -> None:
        """Fill the free slots, one group after the other."""
        with self._changed:
            while batch.free and self._waiting:
                ticket = self._waiting.pop()
                assert ticket.request is not None
                self._active[batch.submit(ticket.request, ticket.sampler)] = ticket

    def _step(self, batch: Batch) -> None:
        if not self._active:
            return
        try:
            outcomes = batch.step()
        except Exception as error:
            with self._changed:
                failed, self._active = list(self._active.values()), {}
            for ticket in failed:
                ticket.end(error)
            return
        finally:
            self._steps += 1
        for number, outcome in outcomes:
            ticket = self._active[number]
            if isinstance(outcome, Exception) or outcome.finish_reason is not None:
                with self._changed:
                    del self._active[number]
                ticket.end(outcome)
            else:
                ticket.tell(outcome)

    def _end(self, batch: Batch, error: ModelClosed) -> None:
        """Nothing goes on: whoever waits for something learns why."""
        with self._changed:
            self._refusal = self._refusal or str(error)
            self._closing = True
            left = [*self._waiting.drop(lambda ticket: True), *self._active.values()]
            self._active = {}
            self._changed.notify_all()
        for _, done in self._orders:
            done.set_exception(error)
        self._orders.clear()
        for ticket in left:
            ticket.close()
            ticket.end(error)
        batch.clear()
