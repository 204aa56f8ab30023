"""One adapter on one sequence: the delta kept in step with the reply, its latest rows at hand.

A `Steering` owns an aligner (which delta tokens the text is), a slot of the shift source (which of
them the delta has consumed) and the last rows of logits, which mid-token shifts look back on.

    reply   "The sea"      aligner  [prompt] `The` `sea`       rows after 5, 6 and 7 tokens
          + "side"         aligner  [prompt] `The` `seaside`   roll back to 6, feed one, row after 7

A reply may go on with a piece and some *drafts*: pieces that are guessed to follow. The delta
consumes them all in one run, there is a forecast (shift and offers) after each, and the next plan
says how many of them came true; the others are taken back.

A plan and what carries it out (`plan`, then `advance`) may run in another thread than the rest, one
call at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cmc_local.delta.source import Feed, ShiftSource
from cmc_local.steer.control import MappedShift, Offer, Shift
from cmc_local.steer.mid_token import REACH, MidToken
from cmc_local.text.alignment import (
    Aligner,
    DeltaPrompt,
    DeltaTokenizer,
    common_prefix,
    edit_between,
)

ROWS_HELD = 16
"""Rows kept, so that rolling back a few tokens needs none of them computed again."""
WORTH_COPYING = 16
"""Tokens that another sequence must have more in common with a prompt than the own one has.

With fewer, decoding them is as fast as copying them between the caches, in either model.
"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the delta says after one piece of the reply."""

    shift: NDArray[np.float32]
    """(V_delta,) float32"""
    offers: Sequence[Offer]
    """What base tokens inside one of the delta's tokens may take instead of their own shift."""


@dataclass(frozen=True, slots=True)
class _PieceEnd:
    """Where in the delta's stream a piece ends."""

    length: int
    """Tokens of the stream up to there."""
    recent: tuple[int, ...]
    """The last of them, for mid-token shifts."""
    held: bytes
    """Bytes after them that are no whole character yet."""


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
        self.source = source
        self._slot = slot
        self._tokenizer = tokenizer
        self._mid_token = mid_token
        self._rows_behind = 0 if mid_token is None else REACH
        self.peers: Sequence[Steering] = ()
        """The same adapter on other sequences, whose slots of the source may be copied from."""
        self.forecasts: list[Forecast] = []
        """What the delta says after the last piece, and after each of its drafts."""
        self.stale = False
        """Whether nobody knows what the slot holds: the next reply feeds all of its prompt.

        So it is from a plan to its end, and stays so where an error comes between.
        """
        self._consumed: list[int] = []
        self._rows: dict[int, NDArray[np.float32]] = {}  # tokens consumed -> logits after them
        # Rows to write into again: large arrays that come and go leave holes in the heap.
        self._spare: list[NDArray[np.float32]] = []
        self._aligner: Aligner | None = None
        self._pieces: list[int] = []  # bytes of the last piece and of each of its drafts
        self._ends: list[_PieceEnd] = []
        self._feed: Feed | None = None

    def begin(self, prompt: DeltaPrompt) -> None:
        """Follow a new reply to `prompt`; what a slot has consumed of it already is kept."""
        if self.stale:
            self._forget()
        self.stale = True
        self._aligner = Aligner(self._tokenizer, prompt)
        self._borrow(self._aligner.tokens)
        keep = edit_between(self._consumed, self._aligner.tokens).keep
        self._pieces = [0]
        self._plan_feed(self._aligner, keep, [self._piece_end(self._aligner)])
        advance([self])

    def push(self, data: bytes) -> None:
        """The reply goes on with `data`."""
        self.plan([data])
        advance([self])

    def plan(self, pieces: Sequence[bytes], *, kept: int = 1) -> None:
        """Plan how the delta follows a piece of the reply and drafts of the pieces after it.

        `pieces` are the piece and its drafts, in bytes; of the last plan's pieces the first `kept`
        came true, the others are taken back. `advance` carries the plan out. It may take fewer
        drafts: it ends before one that changes delta tokens which an earlier forecast stands on.

            last plan "a", drafts "b", "c"; the base chose "b", then "x"    kept=2
                pieces "x", "y"       take back "c", then follow "x" and the draft "y"
            pieces "sea", "side"      `sea` would become `seaside`: "side" is left out
        """
        aligner = self._aligner
        if aligner is None:
            raise RuntimeError("a steering follows no reply before `begin`")
        keep = len(self._consumed)
        if wrong := sum(self._pieces[kept:]):
            keep = aligner.rollback(wrong).keep
        self.stale = True
        ends: list[_PieceEnd] = []
        for piece in pieces:
            edit = aligner.push(piece)
            too_long = len(aligner.tokens) > self.source.context
            if ends and (too_long or edit.keep < ends[-1].length):
                aligner.rollback(len(piece))
                break
            if too_long:
                aligner.shorten(self.source.context)
                edit = edit_between(self._consumed, aligner.tokens)
            keep = min(keep, edit.keep)
            ends.append(self._piece_end(aligner))
        self._pieces = [len(piece) for piece in pieces[: len(ends)]]
        self._plan_feed(aligner, keep, ends)

    def complete(self, rows: NDArray[np.float32] | None) -> None:
        """End a plan with the rows of its feed, (n, V_delta) float32; None where it has none."""
        if self._feed is not None and rows is not None:
            self._consumed.extend(self._feed.tokens)
            end = len(self._consumed)
            oldest = self._ends[0].length - ROWS_HELD
            self._drop_rows([at for at in self._rows if at < oldest])
            for at, row in zip(range(end - len(rows) + 1, end + 1), rows, strict=True):
                kept = self._spare.pop() if self._spare else np.empty_like(row)
                kept[:] = row
                self._rows[at] = kept
        self._feed = None
        self.forecasts = [self._forecast(end) for end in self._ends]
        self.stale = False

    def _piece_end(self, aligner: Aligner) -> _PieceEnd:
        length = len(aligner.tokens)
        # The stream's very first token has no row before it.
        recent = aligner.recent(min(REACH, length - 1)) if self._mid_token else ()
        return _PieceEnd(length, recent, aligner.held)

    def _forecast(self, end: _PieceEnd) -> Forecast:
        offers: Sequence[Offer] = ()
        if self._mid_token is not None:
            offers = self._mid_token.offers(
                end.recent, lambda back: self._rows[end.length - back], held=end.held
            )
        return Forecast(self._rows[end.length], offers)

    def _plan_feed(self, aligner: Aligner, keep: int, ends: list[_PieceEnd]) -> None:
        """Plan to consume the aligner's stream, from far enough back to have all rows needed.

        At least `keep` tokens of what was consumed are still right. A forecast needs the row after
        its piece, and mid-token shifts the REACH rows before that; a row that is not at hand any
        more is had by feeding the token before it again:

            consumed 9 tokens, rows at hand after 7, 8 and 9; the stream is to be 10 long,
            REACH 4: rows after 6 to 10 are needed, the first that is missing is 6
            -> truncate to 5, feed tokens 6 to 10, take the rows of all five
        """
        stream, end = aligner.tokens, ends[-1].length
        while keep < min(len(self._consumed), end) and self._consumed[keep] == stream[keep]:
            keep += 1
        first_row = max(ends[0].length - self._rows_behind, 1)
        missing = (at for at in range(first_row, keep + 1) if at not in self._rows)
        keep = next(missing, keep + 1) - 1 if first_row <= keep else keep
        if keep < len(self._consumed):
            self.source.truncate(self._slot, keep)
            del self._consumed[keep:]
            self._drop_rows([at for at in self._rows if at > keep])
        self._ends = ends
        self._feed = None
        if keep < end:
            self._feed = Feed(self._slot, stream[keep:end], end - max(keep, first_row - 1))

    def _borrow(self, stream: Sequence[int]) -> None:
        """Copy the beginning of a prompt from another sequence that has consumed more of it."""
        own = common_prefix(self._consumed, stream)
        shared = [
            (common_prefix(peer._consumed, stream), i)
            for i, peer in enumerate(self.peers)
            if peer is not self and not peer.stale
        ]
        length, i = max(shared, default=(0, 0))
        if length - own < WORTH_COPYING:
            return
        if self.source.copy(self.peers[i]._slot, self._slot, length):
            self._consumed = list(stream[:length])
            self._drop_rows(list(self._rows))

    def _drop_rows(self, places: Iterable[int]) -> None:
        self._spare += [self._rows.pop(at) for at in places]
        del self._spare[ROWS_HELD:]  # a text that is scored has a row for each of its tokens

    def _forget(self) -> None:
        self._consumed.clear()
        self._drop_rows(list(self._rows))
        self.source.truncate(self._slot, 0)
        self.stale = False


def advance(planned: Iterable[Steering]) -> float:
    """Carry out the plans: feed the sources, all sequences of one source together.

    Returns the seconds that the sources took.
    """
    groups: dict[int, list[Steering]] = {}
    spent = 0.0
    for steering in planned:
        groups.setdefault(id(steering.source), []).append(steering)
    for group in groups.values():
        feeding = [(one, feed) for one in group if (feed := one._feed) is not None]
        before = perf_counter()
        found = group[0].source.feed_many([feed for _, feed in feeding]) if feeding else ()
        spent += perf_counter() - before
        rows = dict(zip((id(one) for one, _ in feeding), found, strict=True))
        for one in group:
            one.complete(rows.get(id(one)))
    return spent


@dataclass(frozen=True, eq=False)
class ActiveAdapter:
    """An adapter that acts on one reply: how strongly, and what its delta is told of it."""

    name: str
    steerings: Sequence[Steering]
    """One for each of the base model's sequences."""
    mapped: MappedShift
    alpha: float
    prompt: DeltaPrompt
    given: bytes = b""
    """What the reply begins with, at the end of the base model's prompt."""

    def begin(self, sequence: int) -> None:
        """Let the delta follow the reply on this sequence."""
        self.steerings[sequence].begin(self.prompt)
        if self.given:
            self.steerings[sequence].push(self.given)

    def shift(self, sequence: int, draft: int = 0) -> Shift:
        """What to add after the last piece, or after one of its drafts (1 is the first)."""
        forecast = self.steerings[sequence].forecasts[draft]
        return Shift(self.mapped, forecast.shift, self.alpha, forecast.offers)
