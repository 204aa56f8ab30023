"""Teacher-forced scores: how likely given texts are after the shift, many tokens at a time.

    prompt + text --> base, a chunk a decode -----> its logits before each token of the text --.
         `-------> each delta, a plan at a time --> its shift there ---------------------------+
                                                      copy, add the shifts, log-probability <--'

The same parts as in a reply that is stepped token by token, so the result is the same up to the
rounding of different kernels per batch size. The logits of a chunk are looked at before the next is
decoded: memory does not grow with the text. Knows tokens and strengths; prompts as texts are the
business of `model/scores.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.engine.logprobs import log_softmax
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.steer.control import Logits, Shift, add_shifts
from cmc_local.steer.steering import ActiveAdapter, advance
from cmc_local.steer.strengths import check_alpha

LOGITS = 1 << 24
"""Numbers of logits that one decode leaves behind, at most: 64 MiB, 128 rows of a large model."""
AHEAD = 64
"""Tokens of the text that a delta is told of at once."""


@dataclass(frozen=True)
class Score:
    """How likely a continuation is, after the shift."""

    tokens: tuple[int, ...]
    logprobs: NDArray[np.float64]
    """(n,) float64, natural logarithms, one for each token"""
    greedy: NDArray[np.bool_]
    """(n,) bool, whether the token was the most likely one"""

    @property
    def total(self) -> float:
        """The continuation's log-probability."""
        return float(self.logprobs.sum())


@dataclass(frozen=True, eq=False)
class Passage:
    """A text after a prompt, in a slot of its own."""

    engine: Engine
    slot: Slot
    prompt: Sequence[int]
    """The base model's tokens, at least one."""
    tokens: Sequence[int]
    """Those of the text, at least one."""
    active: Sequence[ActiveAdapter]
    """The adapters that act."""
    batch: int
    """Tokens that one decode takes."""
    pace: Callable[[], int] | None = None
    """How many the next one may take, asked before each; None: as many as it takes."""

    def score(self) -> Score:
        """How likely the text is with each adapter at its strength."""
        return self._scores([{}])[0]

    def score_alphas(self, name: str, alphas: Sequence[float]) -> list[Score]:
        """How likely the text is with each of these strengths of one adapter that acts."""
        return self._scores([{name: check_alpha(alpha)} for alpha in alphas])

    def shift_rows(self) -> NDArray[np.float32]:
        """What the adapters together add before each token, (n, V_base) float32."""
        rows = np.zeros((len(self.tokens), len(self.engine.base.vocabulary)), np.float32)
        for row, (logits, shifts) in zip(rows, self.positions(), strict=True):
            for one in shifts:
                row += one.mapped.row(logits, one.row, one.alpha, one.offers)
        return rows

    def positions(self) -> Iterator[tuple[Logits, list[Shift]]]:
        """Before each token: the base's logits as they are, (V_base,) float32, and the shifts.

        The logits are lent until the next position, and must stay as they are. Raises
        PromptTooLong before anything is decoded. After an error the slot is stale.
        """
        return chain.from_iterable(self.strides())

    def strides(self) -> Iterator[Iterator[tuple[Logits, list[Shift]]]]:
        """The positions, those of one decode together.

        Between two of them, but not within one, other sequences may be decoded.

            prompt 1 2 3, text 4 5 6 7, of which the cache holds 1 2; decodes of 2 tokens
            1st    decode 3 4    the logits after 3 and 4 say how likely 4 and 5 are
            2nd    decode 5 6    those after 5 and 6, how likely 6 and 7; 7 is not decoded
        """
        self._check()
        base, slot = self.engine.base, self.slot
        given = [*self.prompt, *self.tokens[:-1]]
        self.engine.begin(slot, self.prompt, _Nobody())  # cuts the cache back, no more
        pieces = [base.vocabulary.tokens[token] for token in self.tokens[:-1]]
        deltas = [_follow(one, slot.sequence, pieces) for one in self.active]
        first = len(self.prompt) - 1
        for start, stop in self._chunks(len(slot.cached), first, len(given)):
            wanted = range(min(max(first - start, 0), stop - start), stop - start)
            self.engine.settle()
            with self._stale_on_error():
                base.decode_spans([Span(slot.sequence, start, given[start:stop], wanted)])
                slot.cached.extend(given[start:stop])
            yield self._stride(wanted, deltas)
        self.engine.end(slot)

    def _stride(
        self, wanted: range, deltas: Sequence[Iterator[Shift]]
    ) -> Iterator[tuple[Logits, list[Shift]]]:
        for at in wanted:
            with self._stale_on_error():
                shifts = [next(delta) for delta in deltas]
            yield self.engine.base.logits(at), shifts

    def _check(self) -> None:
        base, size = self.engine.base, len(self.engine.base.vocabulary)
        wrong = next((token for token in self.tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise UsageError(f"token {wrong} is not in the base model's vocabulary of {size}")
        if len(self.prompt) + len(self.tokens) - 1 > base.n_ctx:  # the last is not decoded
            raise PromptTooLong(
                f"prompt and continuation do not fit the base model's context of "
                f"{base.n_ctx} tokens: shorten them, or give a larger context"
            )

    def _chunks(self, start: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Where each decode begins and ends; logits are wanted from `first` on."""
        rows = max(LOGITS // len(self.engine.base.vocabulary), 1)
        while start < end:
            most = self.batch if self.pace is None else min(self.batch, self.pace())
            stop = min(start + most, max(start, first) + rows, end)
            yield start, stop
            start = stop

    @contextmanager
    def _stale_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.slot.stale = True
            self.engine.end(self.slot)
            raise

    def _scores(self, variants: Sequence[Mapping[str, float]]) -> list[Score]:
        """A score for each way to set strengths anew."""
        own = {one.name: one.alpha for one in self.active}
        strengths = [tuple({**own, **variant}.values()) for variant in variants]
        logprobs = np.empty((len(variants), len(self.tokens)), np.float64)
        greedy = np.empty(logprobs.shape, np.bool_)
        row = np.empty(len(self.engine.base.vocabulary), np.float32)
        for at, (logits, shifts) in enumerate(self.positions()):
            for i, alphas in enumerate(strengths):
                np.copyto(row, logits)
                changed = zip(shifts, alphas, strict=True)
                add_shifts(row, [replace(shift, alpha=alpha) for shift, alpha in changed])
                token = self.tokens[at]
                logprobs[i, at] = log_softmax(row)[token]
                greedy[i, at] = row[token] == row.max()
        return [Score(tuple(self.tokens), *pair) for pair in zip(logprobs, greedy, strict=True)]


class _Nobody:
    """Chooses no token: all of them are given."""

    def sample(self, i: int = -1) -> int:
        raise AssertionError("a text that is given is not sampled")


def _follow(active: ActiveAdapter, sequence: int, pieces: Sequence[bytes]) -> Iterator[Shift]:
    """The shift after the prompt, then after each piece of the text."""
    steering = active.steerings[sequence]
    active.begin(sequence)
    yield active.shift(sequence)
    at = 0
    while at < len(pieces):
        # A plan ends before a piece that changes delta tokens behind it, so it may be a short one.
        steering.plan(pieces[at : at + AHEAD], kept=len(steering.forecasts))
        advance([steering])
        found = len(steering.forecasts)
        yield from (active.shift(sequence, draft) for draft in range(found))
        at += found
