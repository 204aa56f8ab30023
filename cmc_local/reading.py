"""A prompt that is given back with its likelihoods (`echo`), read beside the replies in flight.

    tokens  [ before the answer | the answer so far ]
              the base alone      base + shifts          -> one TokenDetail each

A delta says what an answer goes on with, so the shift acts where the answer begins
(`raw_prompts.py`). One `step` decodes one chunk, so that replies do not wait for a long text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cmc_local.control import add_shifts
from cmc_local.details import TokenDetail, Watch
from cmc_local.engine import Engine, Slot
from cmc_local.scoring import Passage
from cmc_local.steering import ActiveSteering

CHUNK = 128
"""Tokens read in one step, at most."""


class Reading:
    """One prompt being read in a slot."""

    def __init__(
        self,
        engine: Engine,
        slot: Slot,
        tokens: Sequence[int],
        answer: int,
        active: Sequence[ActiveSteering],
        watch: Watch,
    ) -> None:
        """The shifts of `active` act on the tokens from number `answer` on."""
        self.details = [TokenDetail(tokens[0], None)]
        """Of the tokens read so far."""
        self._watch = watch
        self._row = np.empty(len(engine.base.vocabulary), np.float32)
        answer = max(answer, 1)
        named = {str(i): one for i, one in enumerate(active)}
        parts = []
        for start, end, acting in ((1, answer, {}), (answer, len(tokens), named)):
            if start < end:
                chunk = min(CHUNK, engine.most_rows())
                parts.append(
                    Passage(engine, slot, tokens[:start], tokens[start:end], acting, chunk)
                )
        self._strides = (stride for passage in parts for stride in passage.strides())
        self._left: Iterator[int] = iter(tokens[1:])

    def step(self) -> bool:
        """Read some more; False when all of it has been read."""
        stride = next(self._strides, None)
        if stride is None:
            return False
        for logits, shifts in stride:
            np.copyto(self._row, logits)
            self._watch.before(self._row)
            add_shifts(self._row, shifts)
            self._watch.after(self._row, next(self._left))
        self.details += self._watch.take()
        return True
