"""What a steered model says of given texts: scores and rows of shifts, all through `passage`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from cmc_local.engine.scoring import Passage, Score
from cmc_local.steer.strengths import Alphas
from cmc_local.text.base_prompt import BasePrompt, Prompt


class Scoring(ABC):
    """What a steered model says of given texts; all of it goes through `passage`."""

    @abstractmethod
    def passage(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> AbstractContextManager[Passage]:
        """A continuation of a prompt, text or base tokens; the model is its own meanwhile."""

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Score:
        """Log-probabilities of a continuation of the prompt, token by token, after the shift."""
        with self.passage(prompt, continuation, alphas=alphas, base_prompt=base_prompt) as passage:
            return passage.score()

    def score_many(
        self,
        items: Iterable[tuple[Prompt, str]],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Iterator[Score]:
        """The score of each (prompt, continuation), in order, as they are asked for.

        What a prompt has in common with the one before it is not decoded again.
        """
        for prompt, text in items:
            yield self.score(prompt, text, alphas=alphas, base_prompt=base_prompt)

    def score_alphas(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        name: str,
        alphas: Sequence[float],
        *,
        base_prompt: BasePrompt | None = None,
    ) -> list[Score]:
        """A score for each strength of one adapter, the others at their own.

        The models run once, whatever the number of strengths.
        """
        one = {name: 1.0}  # of strength 0 it would not be run
        with self.passage(prompt, continuation, alphas=one, base_prompt=base_prompt) as passage:
            return passage.score_alphas(name, alphas)

    def shift_rows(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> NDArray[np.float32]:
        """What all adapters together add before each token, (n, V_base) float32, logits."""
        with self.passage(prompt, continuation, alphas=alphas, base_prompt=base_prompt) as passage:
            return passage.shift_rows()
