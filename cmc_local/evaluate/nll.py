"""How likely a model finds held-out answers: nats per token, bits per character.

    conversations --> score --> a value for each answer --> means

Knows SteeredModel and conversations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmc_local.errors import PromptTooLong
from cmc_local.model.steered import Alphas, SteeredModel
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message


def answer_scores(
    model: SteeredModel,
    conversations: Sequence[Sequence[Message]],
    *,
    alphas: Alphas | None,
    base_prompt: BasePrompt | None,
) -> Iterator[dict[str, Any]]:
    """For each conversation what its last answer costs: nats, tokens, characters, greedy tokens.

    PromptTooLong names an answer that does not fit the context: leaving it out would compare models
    on different data.
    """
    for *asked, last in conversations:
        answer = last["content"]
        try:
            score = model.score(asked, answer, alphas=alphas, base_prompt=base_prompt)
        except PromptTooLong as error:
            raise PromptTooLong(f"the answer {answer[:40]!r}: {error}") from None
        yield {
            "nats": -score.total,
            "tokens": len(score.tokens),
            "characters": len(answer),
            "greedy": int(score.greedy.sum()),
        }


def nll_means(values: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over all answers' tokens and characters, longer answers counting for more.

    `nll` is in nats per token, `bits_per_character` compares models of different vocabularies,
    `greedy` is the share of tokens that were the likeliest.

    >>> nll_means([{"nats": 4 * math.log(2), "tokens": 2, "characters": 8, "greedy": 1}])
    {'nll': 1.3862943611198906, 'bits_per_character': 0.5, 'greedy': 0.5}
    """
    nats, tokens, characters, greedy = (
        sum(one[name] for one in values) for name in ("nats", "tokens", "characters", "greedy")
    )
    return {
        "nll": nats / tokens,
        "bits_per_character": nats / math.log(2) / characters,
        "greedy": greedy / tokens,
    }
