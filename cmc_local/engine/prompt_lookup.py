"""Guessing the next tokens, so that one run of the base model can check several at once.

Reading the weights is most of a step's cost, and rows that are checked together read them once; on
some processors four rows even cost less than one, because other kernels take over. `PromptLookup`
guesses that what followed the last few tokens before will follow them again (prompt lookup
decoding, A. Saxena 2023), which holds where a reply repeats its prompt. A wrong guess costs its
row and nothing else: every token is chosen from its own logits.

    prompt ... the old mill by the river ... reply: the old mill | by the river  <- guessed

`RowCosts` says what rows cost on this machine; from it and from how often the look-up was right
follows how many guesses are worth making. How often it is right is learnt from every token of the
reply, guessed or not, so a text that does not repeat itself costs next to nothing. Once the costs
are known only the text decides, not a clock: the same request gives the same guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 4
"""The longest run of tokens that is looked for in what came before."""
MOST: Final = 7
"""Guesses in one step."""
HANDLING: Final = 2e-4
"""Seconds of Python for each guess that a delta follows: aligned, looked up, perhaps taken back."""
_HOPES: Final = (0.1, 0.3, 0.6, 0.8)
"""How likely the token after a match of 1, 2, ... tokens is thought to come at first."""
_MEMORY: Final = 0.7
"""What the past weighs against one more token."""


class PromptLookup:
    """Guesses for one reply, from the tokens of its prompt and of itself."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in range(LONGEST))
        self._rates = list(_HOPES)
        for token in tokens:
            self._append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """The reply goes on with these tokens; each shows what a guess would have been worth."""
        for token in tokens:
            length, place = self._match()
            if length:
                true = self._tokens[place] == token
                self._rates[length - 1] += (1 - _MEMORY) * (true - self._rates[length - 1])
            self._append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the longest match; none where nothing matches."""
        length, place = self._match()
        return self._tokens[place : place + most] if length else []

    @property
    def rate(self) -> float:
        """How likely each guess is, if those before it are right: learnt from like matches."""
        length, _ = self._match()
        return self._rates[length - 1] if length else 0.0

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


@dataclass(frozen=True)
class RowCosts:
    """What one run of the base model costs, by its number of rows."""

    seconds: Mapping[int, float]
    """Measured with nothing before them, for some numbers of rows, 1 among them."""
    deeper: float | None = 0.0
    """Seconds that each row costs more for each token before it; None while nobody knows."""

    def cost(self, rows: int, depth: int = 0) -> float:
        """The cost of so many rows behind `depth` tokens, in seconds."""
        return self._shallow(rows) + rows * depth * (self.deeper or 0.0)

    def _shallow(self, rows: int) -> float:
        """With nothing before them; between two measured numbers on a straight line."""
        known = sorted(self.seconds)
        above = next((n for n in known if n >= rows), None)
        if above is None:
            return self.seconds[known[-1]] * rows / known[-1]
        if above == rows:
            return self.seconds[rows]
        below = max(n for n in known if n < rows)
        share = (rows - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])

    def fill_up(self, rows: int, depth: int = 0) -> int:
        """The number of rows, `rows` or somewhat more, that costs least."""
        return min(range(rows, max(rows, 4) + 1), key=lambda many: self.cost(many, depth))

    def guesses(
        self, rate: float, most: int, beside: Sequence[RowCosts] = (), depth: int = 0
    ) -> int:
        """How many guesses to check in one run, each likely by `rate` once those before are true.

        The expected tokens of a run are 1 + rate + rate^2 + ...; the most tokens per second win.
        The deltas, `beside`, have as many rows, but no filler.
        """
        best, best_speed, expected = 0, 0.0, 0.0
        for count in range(most + 1):
            expected += rate**count
            cost = self.cost(self.fill_up(1 + count, depth), depth)
            cost += sum(one.cost(1 + count) + HANDLING * count for one in beside)
            if expected / cost > best_speed:
                best, best_speed = count, expected / cost
        return best


NEVER: Final = RowCosts({1: 1.0})
"""Each row costs as much as the first: no guess is worth its row."""
ALWAYS: Final = RowCosts({1: 1.0, 1 + MOST: 1.0})
"""No row costs anything after the first: every guess is worth its row."""
FREE: Final = RowCosts({1: 0.0})
"""What is not there costs nothing."""
