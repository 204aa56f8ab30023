"""What a steering asks of a delta: tokens in, logits out, and the way back.

The ONNX delta (`onnx_delta.py`) is one shift source. Loads nothing heavy, so that what steers need
not know what computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.text.vocabulary import Vocabulary


class Feed(NamedTuple):
    """Tokens that one slot is to consume, and at how many of the last ones logits are wanted."""

    slot: int
    tokens: Sequence[int]
    rows: int = 1


class ShiftSource(Protocol):
    """Anything that turns its own tokens into a shift and can roll back."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def context(self) -> int:
        """Tokens that one slot holds."""
        ...

    @property
    def slots(self) -> int:
        """Independent streams of tokens, numbered from 0."""
        ...

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Append tokens; (min(rows, len(tokens)), V_delta) logits at the last positions."""
        ...

    def feed_many(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        """The result of each feed as if fed alone, up to rounding; a slot at most once."""
        ...

    def copy(self, source: int, target: int, length: int) -> bool:
        """Let `target` hold the first `length` tokens of `source`; False where it cannot."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget all tokens after the first `length`."""
        ...

    def length(self, slot: int) -> int:
        """Tokens that the slot holds now."""
        ...


def check_slot(source: ShiftSource, slot: int, whose: str) -> None:
    """UsageError for a slot that `whose` source ("the delta") does not have."""
    if not 0 <= slot < source.slots:
        raise UsageError(f"there is no slot {slot}: {whose} has {source.slots}, from 0")


def check_kept(source: ShiftSource, slot: int, length: int, whose: str) -> None:
    """UsageError where a slot does not hold so many tokens to keep."""
    check_slot(source, slot, whose)
    if not 0 <= length <= source.length(slot):
        raise UsageError(f"slot {slot} holds {source.length(slot)} tokens, cannot keep {length}")


def checked_feeds(source: ShiftSource, feeds: Sequence[Feed], size: int, whose: str) -> list[Feed]:
    """The feeds of one call with plain integers; UsageError where they cannot be fed together.

    `size` is how many ids the source takes.
    """
    clean = [Feed(slot, [index(one) for one in tokens], rows) for slot, tokens, rows in feeds]
    for slot, tokens, rows in clean:
        check_slot(source, slot, whose)
        if rows < 0:
            raise UsageError(f"rows must be at least 0, not {rows}")
        held = source.length(slot)
        if len(tokens) > source.context - held:
            raise UsageError(
                f"{len(tokens)} tokens do not fit {whose}'s context of {source.context}, where "
                f"slot {slot} holds {held}: truncate it first"
            )
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < size:
                raise UsageError(f"token {token} is not in {whose}'s vocabulary of {size}")
    if len({one.slot for one in clean}) < len(clean):
        raise UsageError("a slot can be fed once in one call: join its tokens")
    return clean
