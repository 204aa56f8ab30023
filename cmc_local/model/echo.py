"""A prompt that is given back with its likelihoods (`echo`), read beside the replies in flight.

    tokens  [ before the answer | the answer so far ]
              the base alone      base + shifts          -> one TokenDetail each

A delta says what an answer goes on with, so the shift acts where the answer begins
(`model/raw_prompts.py`). One `step` decodes one chunk, so that replies do not wait for a long text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from cmc_local.engine.logprobs import LogprobRecorder, TokenDetail
from cmc_local.engine.scoring import Passage
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.engine.timings import Timings
from cmc_local.model.requests import Echo
from cmc_local.steer.control import add_shifts

CHUNK = 128
"""Tokens read in one step, at most."""


class EchoReader:
    """One prompt being read in a slot."""

    def __init__(
        self,
        engine: Engine,
        slot: Slot,
        tokens: Sequence[int],
        echo: Echo,
        recorder: LogprobRecorder | None,
    ) -> None:
        """Without a `recorder` nobody asks for likelihoods, and there is nothing to read."""
        self.details: list[TokenDetail] = []
        """Of the tokens read so far."""
        self._engine = engine
        self._recorder = recorder
        self._row_seconds: float | None = None
        self._seconds = 0.0
        self._left: Iterator[int] = iter(tokens[1:])
        parts: list[Passage] = []
        if recorder is not None:
            self.details.append(TokenDetail(tokens[0], None))
            self._row = np.empty(len(engine.base.vocabulary), np.float32)
            answer = max(echo.shifted, 1)
            for start, end, active in ((1, answer, ()), (answer, len(tokens), echo.active)):
                if start < end:
                    given = tokens[:start], tokens[start:end]
                    parts.append(Passage(engine, slot, *given, active, CHUNK, self._most_rows))
        self._strides = (stride for passage in parts for stride in passage.strides())

    def step(self) -> bool:
        """Read some more; False when all of it has been read."""
        begun, before = perf_counter(), len(self.details)
        stride = next(self._strides, None)
        if stride is None or self._recorder is None:
            return False
        for logits, shifts in stride:
            np.copyto(self._row, logits)
            self._recorder.before(self._row)
            add_shifts(self._row, shifts)
            self._recorder.after(self._row, next(self._left))
        self.details += self._recorder.collected()
        spent = perf_counter() - begun
        self._seconds += spent
        self._row_seconds = spent / max(len(self.details) - before, 1)
        return True

    def book(self, timings: Timings) -> None:
        """What was read for a reply is part of what its prompt cost."""
        if self._recorder is not None:
            timings.reused_tokens = 0
            timings.prompt_seconds += self._seconds
            timings.total_seconds += self._seconds

    def _most_rows(self) -> int:
        """Each row costs its likelihoods too, so the pace is the reading's own once it has one."""
        return self._engine.most_rows(self._row_seconds)
