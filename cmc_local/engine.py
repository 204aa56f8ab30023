"""Sequences in flight, and the step that takes each of them one token further.

One step of a run (DESIGN.md, "One step of the runner"):

    worker thread    | align the new token, run the deltas   |
    calling thread   | llama_decode of the same token        | add the shifts | sample

A *slot* is a conversation's place in both models' caches and outlives its runs, so that the next
turn decodes only what is new. A *run* is one reply: what is still to decode, which steerings act
and how strongly, and who chooses the next token. Knows token ids and logits; text, prompts and stop
texts are `steered.py`'s business. One run at a time is decoded for now, though `step` takes many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.steering import ActiveSteering, Steering, add_shifts, common_prefix
from cmc_local.vocabulary import Vocabulary


class Base(Protocol):
    """What the engine asks of a base model; `BaseModel` is one, tests have a fake."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_ctx(self) -> int: ...
    def decode(self, tokens: Sequence[int], *, start: int, sequence: int = 0) -> None: ...
    def logits(self, i: int = -1) -> NDArray[np.float32]: ...
    def truncate(self, sequence: int, length: int) -> bool: ...
    def clear(self, sequence: int) -> None: ...


class Chooser(Protocol):
    """Chooses the next token from the base model's logits, the shifts already added."""

    def sample(self, i: int = -1) -> int: ...


@dataclass
class Timings:
    """What a reply cost; seconds of wall clock. The deltas' time overlaps the base's."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that were still in the base model's cache."""
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    """Decoding the prompt with the base model."""
    decode_seconds: float = 0.0
    """Decoding the reply with the base model."""
    delta_seconds: float = 0.0
    """Aligning and running the deltas, in their own thread."""
    wait_seconds: float = 0.0
    """Waiting for the deltas after the base model was done."""
    map_seconds: float = 0.0
    """Mapping the shifts and adding them."""
    sample_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the prompt's time aside."""
        seconds = self.total_seconds - self.prompt_seconds
        return self.generated_tokens / seconds if seconds > 0 else 0.0


@dataclass
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


@dataclass
class Run:
    """One reply under way."""

    slot: Slot
    chooser: Chooser
    active: tuple[ActiveSteering, ...]
    pending: list[int]
    """Tokens to decode next: the prompt, later the one token chosen last."""
    work: Callable[[], None] | None
    """What the deltas have to do for the pending tokens."""
    job: Future[None] | None = None
    timings: Timings = field(default_factory=Timings)


class Engine:
    """Steps runs on one base model; owns the worker thread of the deltas."""

    def __init__(self, base: Base, *, batch: int = 512, overlap: bool = True) -> None:
        self.base = base
        self._batch = batch
        self._overlap = overlap
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-delta")

    def begin(
        self,
        slot: Slot,
        prompt: Sequence[int],
        chooser: Chooser,
        active: Sequence[ActiveSteering] = (),
    ) -> Run:
        """A run that continues `prompt`; whatever the slot's caches share with it is kept."""
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token of text")
        self._take_over(slot)
        kept = self._rewind(slot, prompt)
        run = Run(slot, chooser, tuple(active), list(prompt[kept:]), _begin_all(active))
        run.timings.prompt_tokens = len(prompt)
        run.timings.reused_tokens = kept
        slot.run = run
        return run

    def has_room(self, run: Run) -> bool:
        """Whether the base model's context takes the pending tokens."""
        return len(run.slot.cached) + len(run.pending) <= self.base.n_ctx

    def step(self, runs: Sequence[Run]) -> list[int | None]:
        """The token that each run chose; None where part of the prompt is still to decode.

        An error in either model ends all the runs with that error: no token is ever chosen
        from logits that miss a shift.
        """
        for run in runs:
            if run.slot.run is not run:
                raise UsageError("another reply took this one's place: begin it anew")
        try:
            for run in runs:
                self._submit(run)
            return [self._advance(run) for run in runs]
        except BaseException:
            for run in runs:
                run.slot.stale, run.slot.run = True, None
            wait([run.job for run in runs if run.job is not None])
            raise

    def close(self) -> None:
        """End the worker thread; what it is doing is finished first."""
        self._worker.shutdown(wait=True)

    def _take_over(self, slot: Slot) -> None:
        """End the slot's last run, which may have been left with the deltas at work."""
        last, slot.run = slot.run, None
        if last is not None and last.job is not None:
            wait([last.job])
            slot.stale = slot.stale or last.job.exception() is not None

    def _rewind(self, slot: Slot, prompt: Sequence[int]) -> int:
        """Cut the base's cache back to what it shares with the prompt; the length kept.

        The last token is always decoded again, for its logits.
        """
        if slot.stale:
            self.base.clear(slot.sequence)
            slot.cached.clear()
            for steering in slot.steerings:
                steering.forget()
            slot.stale = False
        kept = min(common_prefix(slot.cached, prompt), len(prompt) - 1)
        if kept < len(slot.cached) and not self.base.truncate(slot.sequence, kept):
            self.base.clear(slot.sequence)
            kept = 0
        del slot.cached[kept:]
        return kept

    def _submit(self, run: Run) -> None:
        """Give the deltas' work to the worker thread, if there is any."""
        if run.work is None or not run.active:
            run.work = None
            return
        work, run.work = _timed(run.work, run.timings), None
        if self._overlap:
            run.job = self._worker.submit(work)
        else:
            work()

    def _advance(self, run: Run) -> int | None:
        slot, timings = run.slot, run.timings
        chunk = run.pending[: self._batch]
        begun = perf_counter()
        self.base.decode(chunk, start=len(slot.cached), sequence=slot.sequence)
        spent = perf_counter() - begun
        if timings.generated_tokens:
            timings.decode_seconds += spent
        else:
            timings.prompt_seconds += spent
        slot.cached.extend(chunk)
        del run.pending[: len(chunk)]
        if run.pending:
            return None
        self._add_shifts(run)
        return self._choose(run)

    def _add_shifts(self, run: Run) -> None:
        if not run.active:
            return
        begun = perf_counter()
        if run.job is not None:
            run.job.result()
            run.job = None
        ready = perf_counter()
        add_shifts(self.base.logits(-1), run.active)
        run.timings.wait_seconds += ready - begun
        run.timings.map_seconds += perf_counter() - ready

    def _choose(self, run: Run) -> int:
        begun = perf_counter()
        token = run.chooser.sample(-1)
        run.timings.sample_seconds += perf_counter() - begun
        run.timings.generated_tokens += 1
        run.pending.append(token)
        run.work = _push_all(run.active, self.base.vocabulary.tokens[token])
        return token


def _begin_all(active: Sequence[ActiveSteering]) -> Callable[[], None]:
    def work() -> None:
        for one in active:
            one.steering.begin(one.prompt)

    return work


def _push_all(active: Sequence[ActiveSteering], data: bytes) -> Callable[[], None]:
    def work() -> None:
        for one in active:
            one.steering.push(data)

    return work


def _timed(work: Callable[[], None], timings: Timings) -> Callable[[], None]:
    def timed() -> None:
        begun = perf_counter()
        work()
        timings.delta_seconds += perf_counter() - begun

    return timed
