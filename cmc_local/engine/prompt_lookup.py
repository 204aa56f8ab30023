"""Prompt look-up: drafts of the next tokens, taken from what was said before.

One decode can check several tokens at little more than the cost of one, because it reads the
model's weights once. `PromptLookup` drafts what followed the last few tokens when they came before
(prompt lookup decoding, A. Saxena 2023): right where a reply repeats its prompt, wrong elsewhere.

    prompt ... the old mill by the river ... reply: the old mill | by the river  <- drafted

A wrong draft costs its row and nothing else: every token is chosen from its own logits. The look-up
keeps count of how often it would have been right, so a text that does not repeat itself is left
alone. Only the text decides: the same request gives the same drafts on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LONGEST: Final = 4
"""The longest run of tokens that is looked for in what came before."""
WORTH: Final = 0.4
"""Drafts are made where the next token is at least this likely to be right."""
_FIRST_RATES: Final = (0.1, 0.3, 0.6, 0.8)
"""How often the token after a match of 1, 2, ... tokens is thought to be right at first."""
_MEMORY: Final = 0.7
"""What the past weighs against one more token."""


class PromptLookup:
    """Drafts for one reply, from the tokens of its prompt and of itself."""

    def __init__(
        self, tokens: Sequence[int] = (), *, drafts: int = 4, worth: float = WORTH
    ) -> None:
        """`tokens` are the prompt's; at most `drafts` tokens are drafted for one step."""
        self._drafts = drafts
        self._worth = worth
        self._tokens: list[int] = []
        self._after: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in range(LONGEST))
        self._rates = list(_FIRST_RATES)
        for token in tokens:
            self._append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """The reply goes on with these tokens, each of which shows what a draft was worth."""
        for token in tokens:
            length, place = self._match()
            if length:
                right = self._tokens[place] == token
                self._rates[length - 1] += (1 - _MEMORY) * (right - self._rates[length - 1])
            self._append(token)

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the longest match before; none where none is likely."""
        length, place = self._match()
        if not length or self._rates[length - 1] < self._worth:
            return []
        return self._tokens[place : place + max(min(most, self._drafts), 0)]

    def _match(self) -> tuple[int, int]:
        """How many of the last tokens came before, and the place after them; (0, 0) for none."""
        end = len(self._tokens)
        for length in range(min(LONGEST, end), 0, -1):
            place = self._after[length - 1].get(tuple(self._tokens[end - length :]))
            if place is not None:
                return length, place
        return 0, 0

    def _append(self, token: int) -> None:
        end = len(self._tokens)
        for length in range(1, min(LONGEST, end) + 1):
            self._after[length - 1][tuple(self._tokens[end - length :])] = end
        self._tokens.append(token)
