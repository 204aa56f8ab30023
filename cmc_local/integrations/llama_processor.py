"""A `LogitsProcessor`: the deltas kept in step with a reply that somebody else's loop writes.

    ids (1 7 9)      a new prompt: the deltas begin their reply
    ids (1 7 9 4)    it goes on: they are told the text of token 4
    ids (1 7 9 8)    back to the prompt and on: they begin again, then token 8

Knows token ids and scores, as numpy arrays, and no library that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.steer.control import add_shifts
from cmc_local.steer.steering import ActiveAdapter, advance

Ids = NDArray[np.intc]
"""(n,) intc, the base model's tokens so far, prompt and reply."""
Scores = NDArray[np.float32]
"""(V_base,) float32, logits."""


class DeltaWorker:
    """The thread of one base model's deltas, which follow one reply at a time."""

    def __init__(self, texts: Sequence[bytes], *, overlaps: bool) -> None:
        """`texts` are the base model's tokens as bytes."""
        self.texts = texts
        self.overlaps = overlaps
        """Whether the deltas run while the base model decodes."""
        self.follower: SteeringProcessor | None = None
        """The processor whose reply the deltas' caches hold."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-delta")
        self._job: Future[None] | None = None
        self._closed = False

    def start(self, work: Callable[[], None], *, beside: bool) -> None:
        """Let the deltas work, in their own thread if `beside`; `wait` for it."""
        self.check_open()
        if beside:
            self._job = self._thread.submit(work)
            return
        if self._job is not None:  # one thread at a time has the deltas
            wait([self._job])
        work()

    def wait(self) -> None:
        """Until the deltas have done what was started; raises what went wrong there."""
        if self._job is None:
            return
        try:
            self._job.result()
        finally:
            if self._job.done():  # not where the wait was broken off
                self._job = None

    def check_open(self) -> None:
        """Raises UsageError after `close`."""
        if self._closed:
            raise UsageError("the steering has been closed: load its adapters again")

    def close(self) -> None:
        """End the thread; what it is doing is finished first."""
        self._closed = True
        self._thread.shutdown(wait=True)
        self.follower = None


class SteeringProcessor:
    """A `LogitsProcessor`: the scores of one `Llama` with the shifts of what one question got.

    It serves any number of replies to its question, one after the other. What is a new reply is
    seen in the tokens too, so it also works in a loop of one's own over `eval` and `sample`.
    """

    def __init__(self, worker: DeltaWorker, active: Sequence[ActiveAdapter]) -> None:
        self._worker = worker
        self._active = tuple(active)
        self._prompt: Ids = np.empty(0, np.intc)
        self._told = self._prompt
        self._row = np.empty(len(worker.texts), np.float32)

    @property
    def overlaps(self) -> bool:
        """Whether the deltas run while llama.cpp decodes."""
        return self._worker.overlaps

    def begin(self, prompt: Sequence[int]) -> None:
        """A new reply, to these tokens of the base model."""
        self._prompt = np.asarray(prompt, np.intc)
        self._worker.follower = None
        self.follow(self._prompt, beside=self.overlaps)

    def follow(self, ids: Ids, *, beside: bool = False) -> None:
        """Tell the deltas what is new in the tokens so far, in their own thread if `beside`."""
        worker = self._worker
        anew = worker.follower is not self or not _begins_with(ids, self._told)
        if anew and not (len(self._prompt) and _begins_with(ids, self._prompt)):
            self._prompt = ids.copy()
        new = ids[len(self._prompt if anew else self._told) :]
        if not anew:
            if not len(new):
                return
            worker.wait()  # what follows must not build on a step that failed
        data = b"".join(worker.texts[token] for token in new)
        self._told = ids.copy()
        worker.follower = self
        worker.start(lambda: self._work(anew, data), beside=beside)

    def _work(self, anew: bool, data: bytes) -> None:
        try:
            for one in self._active if anew else ():
                one.begin(0)
            steerings = [one.steerings[0] for one in self._active] if data else []
            for steering in steerings:
                steering.plan([data])
            advance(steerings)
        except BaseException:
            self._worker.follower = None
            raise

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        """The scores after `ids` with the shifts, (V_base,) float32 in a buffer of its own."""
        if len(scores) != len(self._row):
            raise UsageError(
                f"{len(scores)} scores came for a vocabulary of {len(self._row)} tokens:"
                " use these processors with the Llama that they were made for"
            )
        self.follow(ids)
        self._worker.wait()
        self._row[:] = scores
        add_shifts(self._row, [one.shift(0) for one in self._active])
        return self._row


def _begins_with(ids: Ids, prompt: Ids) -> bool:
    return len(ids) >= len(prompt) and np.array_equal(ids[: len(prompt)], prompt)
