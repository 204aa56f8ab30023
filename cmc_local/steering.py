"""One adapter on one sequence: the delta kept in step with the reply, its latest rows at hand.

Holds an aligner (which delta tokens the text is), a slot of the shift source (which of them the
delta has consumed) and the last rows of logits, which mid-token shifts look back on.

    reply   "The sea"      aligner  [prompt] `The` `sea`       rows after 5, 6 and 7 tokens
          + "side"         aligner  [prompt] `The` `seaside`   roll back to 6, feed one, row after 7

What begins or pushes may run in the engine's worker thread, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cmc_local.alignment import Aligner, DeltaPrompt, DeltaTokenizer, Edit, edit_between
from cmc_local.control import MappedShift, Offer
from cmc_local.mid_token import REACH, MidToken

if TYPE_CHECKING:
    from cmc_local.delta import ShiftSource  # without loading ONNX Runtime

ROWS_HELD = 16
"""Rows kept, so that rolling back a few tokens needs none of them computed again."""


class Steering:
    """The delta of one adapter following one sequence."""

    def __init__(
        self,
        source: ShiftSource,
        tokenizer: DeltaTokenizer,
        mid_token: MidToken | None = None,
        *,
        slot: int = 0,
    ) -> None:
        """Without `mid_token` there are no offers, and no rows are kept for them."""
        self._source = source
        self._slot = slot
        self._tokenizer = tokenizer
        self._mid_token = mid_token
        self._rows_behind = 0 if mid_token is None else REACH
        self.offers: list[Offer] = []
        """What base tokens inside one of the delta's tokens may take instead of their own shift."""
        self._consumed: list[int] = []
        self._rows: dict[int, NDArray[np.float32]] = {}  # tokens consumed -> logits after them
        self._aligner: Aligner | None = None

    @property
    def consumed(self) -> tuple[int, ...]:
        """The tokens that the delta's cache holds."""
        return tuple(self._consumed)

    @property
    def shift(self) -> NDArray[np.float32]:
        """The delta's logits for what comes next, `(V_delta,) float32`."""
        return self._rows[len(self._consumed)]

    def row_before(self, back: int) -> NDArray[np.float32]:
        """The logits before the last `back` tokens, `(V_delta,) float32`; 0 is `shift`."""
        return self._rows[len(self._consumed) - back]

    def begin(self, prompt: DeltaPrompt) -> None:
        """Follow a new reply to `prompt`; what the slot has consumed of it already is kept."""
        self._aligner = Aligner(self._tokenizer, prompt)
        self._follow(self._aligner.start(self._consumed))
        self._look_back(self._aligner)

    def push(self, data: bytes) -> None:
        """The reply goes on with `data`."""
        if self._aligner is None:
            raise RuntimeError("a steering follows no reply before `begin`")
        edit = self._aligner.push(data)
        if len(self._aligner.tokens) > self._source.context:
            self._aligner.shorten(self._source.context)
            edit = edit_between(self._consumed, self._aligner.tokens)
        self._follow(edit)
        self._look_back(self._aligner)

    def forget(self) -> None:
        """Empty the slot: after an error nobody knows what it holds."""
        self._consumed.clear()
        self._rows.clear()
        self._aligner = None
        self._source.truncate(self._slot, 0)

    def _look_back(self, aligner: Aligner) -> None:
        if self._mid_token is not None:
            # The stream's very first token has no row before it.
            recent = aligner.recent(min(REACH, len(self._consumed) - 1))
            self.offers = self._mid_token.offers(recent, self.row_before, held=aligner.held)

    def _follow(self, edit: Edit) -> None:
        """Consume an edit, from far enough back to have all the rows that are needed."""
        keep, feed = edit.keep, list(edit.feed)
        end = keep + len(feed)
        first_row = max(end - self._rows_behind, 1)
        missing = [at for at in range(first_row, keep + 1) if at not in self._rows]
        if missing:  # rolled back further than rows are held: consume some tokens again
            feed = self._consumed[missing[0] - 1 : keep] + feed
            keep = missing[0] - 1
        if keep < len(self._consumed):
            self._source.truncate(self._slot, keep)
            del self._consumed[keep:]
            self._rows = {at: row for at, row in self._rows.items() if at <= keep}
        if feed:
            self._feed(feed)

    def _feed(self, tokens: Sequence[int]) -> None:
        rows = self._source.feed(self._slot, tokens, rows=self._rows_behind + 1)
        self._consumed.extend(tokens)
        end = len(self._consumed)
        for at, row in zip(range(end - len(rows) + 1, end + 1), rows, strict=True):
            self._rows[at] = row
        for at in [at for at in self._rows if at < end - ROWS_HELD]:
            del self._rows[at]


@dataclass(frozen=True, eq=False)
class ActiveSteering:
    """A steering in one request: its strength there, and the delta's prompt."""

    steering: Steering
    mapped: MappedShift
    alpha: float
    prompt: DeltaPrompt


def add_shifts(base: NDArray[np.float32], active: Sequence[ActiveSteering]) -> None:
    """Add every steering's shift to the base's logits, in place; each is mapped from them alone."""
    rows = [
        one.mapped.row(base, one.steering.shift, one.alpha, one.steering.offers) for one in active
    ]
    for row in rows:
        base += row


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
