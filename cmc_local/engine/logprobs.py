"""How likely each token of a reply was: with the shift, without it, and what else could have come.

Knows rows of logits and token ids, no models and no texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ranked = tuple[tuple[int, float], ...]
"""Token ids and their natural log-probabilities, the most likely first."""


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """One token of a text; logarithms are natural."""

    token: int
    logprob: float | None
    """After the shift; None for a token that nothing stands before."""
    top: Ranked = ()
    plain_logprob: float | None = None
    """Before the shift, where that was asked for."""
    plain_top: Ranked = ()


class LogprobRecorder:
    """Collects the details of the tokens that a run chooses."""

    def __init__(self, top: int = 0, *, plain: bool = False) -> None:
        """`top` alternatives for each token; `plain` says what the base model alone would say."""
        self.top = top
        self.plain = plain
        self._before: NDArray[np.float32] | None = None
        self._details: list[TokenDetail] = []

    def before(self, logits: NDArray[np.float32]) -> None:
        """The row (V_base,) float32 that the next token is chosen from, not shifted yet."""
        if self.plain:
            self._before = logits.copy()

    def after(self, logits: NDArray[np.float32], token: int) -> None:
        """The same row, shifted, and what was chosen."""
        self._details.append(detail(logits, token, self.top, before=self._before))
        self._before = None

    def collected(self) -> list[TokenDetail]:
        """The details since the last call, oldest first."""
        found, self._details = self._details, []
        return found


def detail(
    logits: NDArray[np.float32],
    token: int,
    top: int = 0,
    *,
    before: NDArray[np.float32] | None = None,
) -> TokenDetail:
    """A token's place in the row (V_base,) float32, and in the row before the shift."""
    logprobs = log_softmax(logits)
    if before is None:
        return TokenDetail(token, float(logprobs[token]), ranked(logprobs, top))
    plain = log_softmax(before)
    return TokenDetail(
        token,
        float(logprobs[token]),
        ranked(logprobs, top),
        float(plain[token]),
        ranked(plain, top),
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities of a row of logits, (V,) float64."""
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def ranked(logprobs: NDArray[np.float64], top: int) -> Ranked:
    """The `top` most likely tokens; of those named that are alike the lowest id comes first."""
    top = min(top, len(logprobs))
    if top <= 0:
        return ()
    found = np.argpartition(logprobs, -top)[-top:]
    found = found[np.lexsort((found, -logprobs[found]))]
    return tuple((int(token), float(logprobs[token])) for token in found)
