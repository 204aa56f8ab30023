"""What moves the logits of several models, at the same places of the same answers.

    answers -+-> passage.shift_rows, model by model ----> rows at shared places --> similarity.py
             `-> fine-tuned minus plain, pair by pair --'            `--> moved: which tokens most

A place is where a token of every model begins: told by the bytes of the answer that are left, since
tokenizers differ at its beginning. Knows SteeredModel; nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.evaluate.results import spread
from cmc_local.evaluate.similarity import Shifts
from cmc_local.model.steered import Prompt, SteeredModel
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message
from cmc_local.text.vocabulary import Vocabulary

PLACES: Final = 200
"""Looked at, at most, evenly spread: 100 MB of shifts for a vocabulary of 128,256 tokens."""
MOST: Final = 50
"""Tokens of each direction that `moved` names."""

Rows = NDArray[np.float32]
Place = tuple[int, int]
"""Number of the answer, and the bytes of it that are left."""


def place_ends(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[int]:
    """For each token of an answer the bytes that are left where it begins.

    "The", " cat" gives [7, 4].
    """
    sizes = [len(vocabulary.tokens[token]) for token in tokens]
    return list(accumulate(reversed(sizes)))[::-1]


def token_places(
    model: SteeredModel,
    conversations: Sequence[Sequence[Message]],
    base_prompt: BasePrompt | None,
) -> list[Place]:
    """Where each token of each answer begins, the model's own tokens."""
    found = []
    for number, talk in enumerate(conversations):
        prompt, answer = talk[:-1], talk[-1]["content"]
        with model.passage(prompt, answer, base_prompt=base_prompt) as passage:
            ends = place_ends(model.base.vocabulary, passage.tokens)
        found += [(number, end) for end in ends]
    return found


def shared_places(places: Sequence[Sequence[Place]]) -> list[Place]:
    """The places that all models have, in the first one's order, at most PLACES."""
    others = [set(one) for one in places[1:]]
    shared = [place for place in places[0] if all(place in one for one in others)]
    return spread(shared, PLACES)


def shifts_at(
    model: SteeredModel,
    conversations: Sequence[Sequence[Message]],
    places: Sequence[Place],
    base_prompt: BasePrompt | None,
) -> Shifts:
    """What the model's adapters add at these places, each with its own strength."""

    def shifts(prompt: Prompt, answer: str) -> tuple[Sequence[int], Rows]:
        with model.passage(prompt, answer, base_prompt=base_prompt) as passage:
            return passage.tokens, passage.shift_rows()

    return _at(places, model.base.vocabulary, conversations, shifts)


def pair_shifts_at(
    plain: SteeredModel,
    finetuned: SteeredModel,
    conversations: Sequence[Sequence[Message]],
    places: Sequence[Place],
    base_prompt: BasePrompt | None,
) -> Shifts:
    """What fine-tuning added to a model at these places: fine-tuned logits minus plain ones.

    Both read the same tokens, as the fine-tuned model is asked; their adapters do not act.
    UsageError where their vocabularies differ.
    """
    vocabulary = finetuned.base.vocabulary
    if plain.base.vocabulary.tokens != vocabulary.tokens:
        raise UsageError(
            "a plain model and its fine-tuned one must have the same vocabulary: "
            "give --pair PLAIN,FINETUNED of one model"
        )

    def shifts(prompt: Prompt, answer: str) -> tuple[Sequence[int], Rows]:
        with finetuned.passage(prompt, answer, alphas=0.0, base_prompt=base_prompt) as asked:
            rows = np.stack([logits.copy() for logits, _ in asked.positions()])
        with plain.passage(prompt, asked.tokens, alphas=0.0, base_prompt=base_prompt) as passage:
            same = replace(passage, prompt=asked.prompt)
            for row, (logits, _) in zip(rows, same.positions(), strict=True):
                row -= logits
        return asked.tokens, rows

    return _at(places, vocabulary, conversations, shifts)


def _at(
    places: Sequence[Place],
    vocabulary: Vocabulary,
    conversations: Sequence[Sequence[Message]],
    shifts: Callable[[Prompt, str], tuple[Sequence[int], Rows]],
) -> Shifts:
    """The rows at the places, of `shifts`: (prompt, answer) -> its tokens, (n, V) before each."""
    rows: dict[Place, NDArray[np.float32]] = {}
    wanted = set(places)
    for number in dict.fromkeys(number for number, _ in places):
        tokens, found = shifts(conversations[number][:-1], conversations[number][-1]["content"])
        for end, row in zip(place_ends(vocabulary, tokens), found, strict=True):
            if (number, end) in wanted:
                rows.setdefault((number, end), row.copy())
    return Shifts(vocabulary, np.stack([rows[place] for place in places]))


def moved(models: Mapping[str, Shifts]) -> list[dict[str, Any]]:
    """The MOST tokens moved up, and down: their mean shift over all places of all models.

    A shift is free up to a constant, so each is taken from its row's mean. Tokens are told apart by
    their text; `count` is the number of places at which a model had it.
    """
    sums: dict[bytes, float] = {}
    counts: dict[bytes, int] = {}
    for one in models.values():
        centred = one.rows - one.rows.mean(axis=1, keepdims=True)  # (P, V)
        means = centred.mean(axis=0, dtype=np.float64)
        for text, mean in zip(one.vocabulary.tokens, means, strict=True):
            if text:
                sums[text] = sums.get(text, 0.0) + float(mean) * len(one.rows)
                counts[text] = counts.get(text, 0) + len(one.rows)
    ranked = sorted(sums, key=lambda text: sums[text] / counts[text])
    chosen = dict.fromkeys((*ranked[:MOST], *ranked[-MOST:]))
    return [
        {
            "token": text.decode("utf-8", "replace"),
            "mean_shift": round(sums[text] / counts[text], 4),
            "count": counts[text],
        }
        for text in chosen
    ]
