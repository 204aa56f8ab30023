"""What a reader gets of a reply: `Piece` by `Piece`, or one `Completion`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cmc_local.engine.logprobs import TokenDetail
from cmc_local.engine.timings import Timings

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """A part of a reply: whole characters, never a part of a stop text.

    The last piece alone has a finish reason and timings (none where the reply was cancelled before
    it began); a notice comes in a piece of its own.
    """

    text: str
    """Of the answer, without the thoughts before it."""
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    notice: str = ""
    details: tuple[TokenDetail, ...] = ()
    """One for each of `tokens`, where that was asked for."""
    echo: bool = False
    """Whether this is the prompt, and no part of the reply."""
    thinking: str = ""
    """Of the thoughts before the answer, where the model's chat template marks them."""
    stopped_by: str | None = None
    """The stop text that ended the reply, on the last piece."""
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
    thinking: str = ""
    """The thoughts before the answer, where the model's chat template marks them."""


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
        "".join(part.thinking for part in parts),
    )
