"""The deltas of all replies at work beside the base model, in one thread of their own.

One step, and the order of the calls in it:

    DeltaThread.start     hand over what the deltas do not know yet: a new reply's prompt, or the
                          token that was chosen last and the drafts of those after it
    (the base decodes)
    DeltaThread.wait      the shifts are there, or what went wrong is raised; for each reply once
                          its next token is to be chosen
    Deltas.shifts         to be added to the base's logits
    Deltas.chosen         noted; `start` of the next step hands it over

`DeltaThread.leave` ends a reply at any moment. While the thread works nothing else may touch the
adapters; `settle` waits until it rests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from cmc_local.engine.timings import StepTimes, Timings
from cmc_local.steer.control import Shift
from cmc_local.steer.steering import ActiveAdapter, advance


@dataclass(eq=False)
class Deltas:
    """The adapters that act on one reply, and how far their deltas have followed it."""

    active: tuple[ActiveAdapter, ...]
    sequence: int
    timings: Timings
    """The reply's."""
    _begun: bool = False
    """Whether they know the prompt."""
    _chosen: bytes | None = None
    """The text of the token chosen last, while they do not know it."""
    _kept: int = 1
    """How many of the pieces that they were given last came true."""
    _job: Future[None] | None = None

    def chosen(self, piece: bytes, count: int) -> None:
        """The last step chose `count` tokens, the drafts that came true and this one after them."""
        self._chosen, self._kept = piece, count

    def reach(self, most: int) -> int:
        """For how many places, at most `most`, there are shifts: drafts may not be followed far."""
        return min([most, *(len(one.steerings[self.sequence].forecasts) for one in self.active)])

    def shifts(self, draft: int = 0) -> list[Shift]:
        """What to add after the last piece, or after one of its drafts (1 is the first)."""
        return [one.shift(self.sequence, draft) for one in self.active]


class DeltaThread:
    """Runs the deltas; not overlapped, in the thread of whoever calls `start`."""

    def __init__(self, times: StepTimes, *, overlaps: bool) -> None:
        """`times` is where the deltas' time is booked, besides each reply's own."""
        self._times = times
        self._overlaps = overlaps
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-delta")
        self._last_job: Future[None] | None = None

    def start(self, replies: Sequence[tuple[Deltas, Sequence[bytes]]]) -> None:
        """Let the deltas follow each reply: to its prompt, or by a token and these drafts."""
        going = []
        for deltas, drafts in replies:
            if deltas.active and not deltas._begun:
                deltas._begun = True
                self._submit([deltas], partial(_begin, deltas))
            elif deltas.active and deltas._chosen is not None:
                going.append((deltas, [deltas._chosen, *drafts], deltas._kept))
                deltas._chosen = None
        if going:  # all in one job, so that the rows of an adapter run together
            self._submit([deltas for deltas, _, _ in going], partial(_follow, going))

    def wait(self, deltas: Deltas) -> None:
        """Until the deltas know what follows; raises what went wrong."""
        if deltas._job is None:
            return
        begun = perf_counter()
        deltas._job.result()
        deltas._job = None
        spent = perf_counter() - begun
        for times in (self._times, deltas.timings):
            times.wait_seconds += spent

    def leave(self, deltas: Deltas) -> None:
        """The reply is over: what they do for it is finished first, errors and all."""
        if deltas._job is not None:
            wait([deltas._job])

    def settle(self) -> None:
        """Wait until the thread rests, so that another one may use the adapters."""
        if self._last_job is not None:
            wait([self._last_job])

    def close(self) -> None:
        """End the thread; what it is doing is finished first."""
        self._worker.shutdown(wait=True)

    def _submit(self, replies: Sequence[Deltas], work: Callable[[], tuple[float, float]]) -> None:
        def timed() -> None:
            begun = perf_counter()
            aligned, session = work()
            spent = perf_counter() - begun
            for times in (self._times, *(deltas.timings for deltas in replies)):
                times.delta_seconds += spent
                times.align_seconds += aligned
                times.session_seconds += session

        if not self._overlaps:
            timed()
            return
        self._last_job = self._worker.submit(timed)
        for deltas in replies:
            deltas._job = self._last_job


def _begin(deltas: Deltas) -> tuple[float, float]:
    for one in deltas.active:
        one.begin(deltas.sequence)
    return 0.0, 0.0  # a prompt's time is told as a whole


def _follow(replies: Sequence[tuple[Deltas, Sequence[bytes], int]]) -> tuple[float, float]:
    """Align what is new, run the networks; the seconds of both."""
    begun = perf_counter()
    steerings = []
    for deltas, pieces, kept in replies:
        for one in deltas.active:
            steerings.append(one.steerings[deltas.sequence])
            steerings[-1].plan(pieces, kept=kept)
    aligned = perf_counter() - begun
    return aligned, advance(steerings)
