"""One `llama_decode` as its caller sees it: spans of tokens from several sequences, side by side.

    Span(0, start=7, tokens=(5,))             sequence 0 goes on by one token, logits for it
    Span(1, start=0, tokens=(1, 9, 4))        the beginning of a prompt, logits for its last token
    Span(2, 3, (8, 6, 2), outputs=range(2))   a token and two drafts; logits for the first two

Rows are numbered through: the spans above are rows 0, 1 to 3 and 4 to 6 of the batch. Imports
nothing of llama.cpp, so that the engine need not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a batch."""

    sequence: int
    start: int
    """The position of its first token."""
    tokens: Sequence[int]
    outputs: range | None = None
    """Which of its tokens get logits; None is the last one."""

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)
