"""From tokens to replies: pieces of text, whole completions, scores.

    ids from the engine -> `Piece` by `Piece` -> one `Completion`

Knows no prompts and no adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmc_local.engine.logprobs import TokenDetail, Watch
from cmc_local.engine.step import Engine, Run, Timings
from cmc_local.settings import Sampling
from cmc_local.text.text_stream import TextStream
from cmc_local.text.vocabulary import Role, Vocabulary

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """A part of a reply: whole characters, never a part of a stop text.

    The last piece alone has a finish reason and timings (none where the reply was cancelled before
    it began); a notice comes in a piece of its own.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    notice: str = ""
    details: tuple[TokenDetail, ...] = ()
    """One for each of `tokens`, where that was asked for."""
    echo: bool = False
    """Whether this is the prompt, and no part of the reply."""
    end: TokenDetail | None = None
    """The token by which the model ended the reply, on the last piece, where details are asked."""


@dataclass(frozen=True)
class Completion:
    """A whole reply."""

    text: str
    tokens: tuple[int, ...]
    """The base model's tokens, without the one that ended the reply."""
    finish_reason: FinishReason
    timings: Timings
    notices: tuple[str, ...] = ()
    details: tuple[TokenDetail, ...] = ()
    """One for each of `tokens`, where that was asked for."""


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


def completion(pieces: Iterable[Piece]) -> Completion:
    """The pieces of one reply, joined."""
    parts = list(pieces)
    last = parts[-1]
    assert last.finish_reason is not None and last.timings is not None
    return Completion(
        "".join(part.text for part in parts),
        tuple(token for part in parts for token in part.tokens),
        last.finish_reason,
        last.timings,
        tuple(part.notice for part in parts if part.notice),
        tuple(one for part in parts for one in part.details),
    )


class Reply:
    """One reply as it comes: takes what its run chose, gives what may be shown."""

    def __init__(
        self, run: Run, vocabulary: Vocabulary, sampling: Sampling, watch: Watch | None = None
    ) -> None:
        self.run = run
        self.reason: FinishReason | None = None
        """Why it ended; None while it goes on."""
        self._vocabulary = vocabulary
        self._most = sampling.max_tokens
        self._stream = TextStream(sampling.stop)
        self._count = 0
        self._tokens: list[int] = []  # whose text is held back
        self._watch = watch
        self._details: list[TokenDetail] = []
        self._end: TokenDetail | None = None

    def take(self, chosen: Sequence[int]) -> Piece | None:
        """The text that these tokens set free, up to the one that ends the reply."""
        text = ""
        details = self._watch.take() if self._watch is not None else []
        for token, detail in zip_longest(chosen, details):
            if self._vocabulary.roles[token] == Role.EOS:
                self.reason = "stop"
                self._end = detail
                break
            self._count += 1
            self._tokens.append(token)
            if detail is not None:
                self._details.append(detail)
            text += self._stream.push(self._vocabulary.tokens[token])
            if self._stream.stopped:
                self.reason = "stop"
                break
            if self._count >= self._most:
                self.reason = "length"
                break
        if not text:
            return None
        piece = Piece(text, tuple(self._tokens), details=tuple(self._details))
        self._tokens.clear()
        self._details.clear()
        return piece

    def last(self, reason: FinishReason | None = None) -> Piece:
        """The piece that ends the reply, for `reason` if it had none of its own."""
        self.reason = self.reason or reason
        timings = replace(self.run.timings, generated_tokens=self._count)
        return Piece(
            self._stream.finish(),
            tuple(self._tokens),
            self.reason,
            timings,
            details=tuple(self._details),
            end=self._end,
        )


def reply(
    engine: Engine,
    run: Run,
    sampling: Sampling,
    cancelled: Callable[[], bool] | None = None,
    watch: Watch | None = None,
) -> Iterator[Piece]:
    """Step a run until it ends: by the model, a stop text, a limit or `cancelled()`."""
    state = Reply(run, engine.base.vocabulary, sampling, watch)
    reason: FinishReason | None = None
    while state.reason is None and reason is None:
        if cancelled is not None and cancelled():
            reason = "cancelled"
        elif not engine.has_room(run):
            reason = "length"
        else:
            begun = perf_counter()
            chosen = engine.step([run])[0]
            run.timings.total_seconds += perf_counter() - begun
            if run.failed is not None:
                raise run.failed
            if (piece := state.take(chosen)) is not None:
                yield piece
    yield state.last(reason)
