"""What a steering asks of a delta: tokens in, logits out, and the way back.

The ONNX delta (`onnx_delta.py`) is one shift source. Loads nothing heavy, so that what steers need
not know what computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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
