"""Teacher-forced scores: how likely given texts are after the shift, many tokens at a time.

    prompt + text --> base, a chunk a decode -----> its logits before each token of the text --.
         `-------> each delta, a plan at a time --> its shift there ---------------------------+
                                                      copy, add the shifts, log-probability <--'

The same parts as in a reply that is stepped token by token, so the result is the same up to the
rounding of different kernels per batch size. The logits of a chunk are looked at before the next is
decoded: memory does not grow with the text. Knows tokens and strengths; what is asked of whom, and
by which prompt, is `model/steered.py`'s business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.engine.logprobs import log_softmax
from cmc_local.engine.replies import Score
from cmc_local.engine.step import Engine, Slot
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.steer.control import Logits, Shift, add_shifts, check_alpha
from cmc_local.steer.steering import ActiveSteering, advance
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message

Prompt = str | Sequence[Message]
"""A question, or a conversation in OpenAI's chat shape."""
Alphas = float | Mapping[str, float]
"""One strength for every adapter, or by name; an adapter that is not named keeps its own."""
LOGITS = 1 << 24
"""Numbers of logits that one decode leaves behind, at most: 64 MiB, 128 rows of a large model."""
AHEAD = 64
"""Tokens of the text that a delta is told of at once."""


class Scoring(ABC):
    """What a steered model says of given texts; all of it goes through `passage`."""

    @abstractmethod
    def passage(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> AbstractContextManager[Passage]:
        """A continuation of a prompt, text or base tokens; the model is its own meanwhile."""

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Score:
        """Log-probabilities of a continuation of the prompt, token by token, after the shift."""
        with self.passage(prompt, continuation, alphas=alphas, base_prompt=base_prompt) as passage:
            return passage.score()

    def score_many(
        self,
        items: Iterable[tuple[Prompt, str]],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Iterator[Score]:
        """The score of each (prompt, continuation), in order, as they are asked for.

        What a prompt has in common with the one before it is not decoded again.
        """
        for prompt, text in items:
            yield self.score(prompt, text, alphas=alphas, base_prompt=base_prompt)

    def score_alphas(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        name: str,
        alphas: Sequence[float],
        *,
        base_prompt: BasePrompt | None = None,
    ) -> list[Score]:
        """A score for each strength of one adapter, the others at their own.

        The models run once, whatever the number of strengths.
        """
        one = {name: 1.0}  # of strength 0 it would not be run
        with self.passage(prompt, continuation, alphas=one, base_prompt=base_prompt) as passage:
            return passage.score_alphas(name, alphas)

    def shift_rows(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> NDArray[np.float32]:
        """What all adapters together add before each token, (n, V_base) float32, logits."""
        with self.passage(prompt, continuation, alphas=alphas, base_prompt=base_prompt) as passage:
            return passage.shift_rows()


@dataclass(frozen=True, eq=False)
class Passage:
    """A text after a prompt, in a slot of its own."""

    engine: Engine
    slot: Slot
    prompt: Sequence[int]
    """The base model's tokens, at least one."""
    tokens: Sequence[int]
    """Those of the text, at least one."""
    active: Mapping[str, ActiveSteering]
    """The adapters that act, by name."""
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
        """
        self._check()
        base, slot = self.engine.base, self.slot
        given = [*self.prompt, *self.tokens[:-1]]
        active = tuple(self.active.values())
        self.engine.begin(slot, self.prompt, _Nobody(), active)  # cuts the cache back, no more
        pieces = [base.vocabulary.tokens[token] for token in self.tokens[:-1]]
        deltas = [_follow(one, pieces) for one in active]
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
        own = {name: one.alpha for name, one in self.active.items()}
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


def _follow(active: ActiveSteering, pieces: Sequence[bytes]) -> Iterator[Shift]:
    """The shift after the prompt, then after each piece of the text."""
    steering = active.steering
    active.begin()
    yield active.shift()
    at = 0
    while at < len(pieces):
        # A plan ends before a piece that changes delta tokens behind it, so it may be a short one.
        steering.plan(pieces[at : at + AHEAD], kept=len(steering.places))
        advance([steering])
        yield from (active.shift(draft) for draft in range(len(steering.places)))
        at += len(steering.places)
