"""Our runner's arms: plain, steered, several sequences at once, with guesses.

The step is the engine's, as every reply takes it; only who chooses differs: the real sampler is run
and the text's token is taken. One sequence's arms share a slot, so that they share its caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol

from cmc_local.bench.arms import Place, Sample, Tokens, undisturbed
from cmc_local.bench.passages import Passage
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import Chooser, Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.steer.steering import ActiveAdapter

DRAFTS: Final = 4
"""Tokens drafted for one step, in the arms that guess."""
_OF_DELTA = ("align", "session")
_SUMMED = ("decode", "delta", *_OF_DELTA, "wait", "map", "sample")


class Sampler(Chooser, Protocol):
    """A native sampler chain."""

    def close(self) -> None: ...


class Forced:
    """Lets the sampler choose, and takes the text's token."""

    def __init__(self, sampler: Sampler, reply: Tokens, end: int) -> None:
        """`end` is taken once the reply is over: guesses reach beyond it."""
        self._sampler = sampler
        self._reply = reply
        self._end = end
        self._taken = 0

    def sample(self, i: int = -1) -> int:
        """The reply's next token."""
        self._sampler.sample(i)
        self._taken += 1
        return self._reply[self._taken - 1] if self._taken <= len(self._reply) else self._end

    def close(self) -> None:
        self._sampler.close()


@dataclass(frozen=True, eq=False)
class Part:
    """One sequence's share in an arm."""

    slot: Slot
    passage: Passage
    active: tuple[ActiveAdapter, ...] = ()


class OurArm:
    """Some sequences written at once by one engine."""

    def __init__(
        self,
        place: Place,
        engine: Engine,
        parts: Sequence[Part],
        make_sampler: Callable[[], Sampler],
    ) -> None:
        """Guesses are made where the place says so."""
        self.place = place
        self._engine = engine
        self._parts = parts
        self._make_sampler = make_sampler

    def run(self) -> Sample:
        """One timed run."""
        choosers = [self._chooser(part) for part in self._parts]
        try:
            runs = [self._begin(*one) for one in zip(self._parts, choosers, strict=True)]
            written: list[list[int]] = [[] for _ in runs]
            with undisturbed():
                self._write(runs, written, [1] * len(runs))
                untimed = sum(map(len, written))
                before, begun = self._times(), perf_counter()
                self._write(runs, written, [len(part.passage.reply) for part in self._parts])
                seconds = perf_counter() - begun
        finally:
            for chooser in choosers:
                chooser.close()
        emitted = tuple(
            tuple(tokens[: len(part.passage.reply)])
            for tokens, part in zip(written, self._parts, strict=True)
        )
        parts = self._spent(before, seconds)
        return Sample(seconds, sum(map(len, emitted)) - untimed, emitted, parts)

    def first_token(self) -> float:
        """Seconds from the prompt to the first token, with nothing in the caches."""
        (part,) = self._parts
        part.slot.stale = True
        for one in part.active:
            one.steerings[part.slot.sequence].stale = True
        chooser = self._chooser(part)
        try:
            with undisturbed():
                begun = perf_counter()
                run = self._begin(part, chooser)
                while not self._engine.step([run])[0]:
                    pass
                return perf_counter() - begun
        finally:
            chooser.close()

    def _chooser(self, part: Part) -> Forced:
        end = self._engine.base.vocabulary.eos_id
        return Forced(self._make_sampler(), part.passage.reply, 0 if end is None else end)

    def _begin(self, part: Part, chooser: Forced) -> Run:
        prompt = part.passage.prompt
        guesses = self.place.kind.endswith("+guesses")
        lookup = PromptLookup(prompt, drafts=DRAFTS) if guesses else None
        return self._engine.begin(part.slot, prompt, chooser, part.active, drafter=lookup)

    def _write(
        self, runs: Sequence[Run], written: Sequence[list[int]], least: Sequence[int]
    ) -> None:
        """Step the runs until each has written its least number of tokens."""
        rows = list(zip(runs, written, least, strict=True))
        while rows := [row for row in rows if len(row[1]) < row[2]]:
            found = self._engine.step([run for run, _, _ in rows])
            for (_, tokens, _), new in zip(rows, found, strict=True):
                tokens.extend(new)

    def _times(self) -> dict[str, float]:
        return {name: getattr(self._engine.times, f"{name}_seconds") for name in _SUMMED}

    def _spent(self, before: dict[str, float], seconds: float) -> dict[str, float]:
        """Seconds of each part of the steps; `python` is what the others leave.

        Where the delta runs beside the base, its own time is no part of the sum, waiting for it is.
        `align` and `session` are the delta's; its rest are rows kept and mid-token look-ups.
        """
        parts = {name: spent - before[name] for name, spent in self._times().items()}
        left_out = {*_OF_DELTA, *(("delta",) if parts["wait"] > 0 else ())}
        counted = [spent for name, spent in parts.items() if name not in left_out]
        parts["python"] = max(0.0, seconds - sum(counted))
        if not self._parts[0].active:
            for name in ("delta", *_OF_DELTA, "wait", "map"):
                del parts[name]
        return parts
