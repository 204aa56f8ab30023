"""A recipe's files -> the rows that its task trains on, and those that are held out.

instruct   [answers]                  forget   [to forget, (a refusal,) to keep ...]
and with `plain` rows of plain text beside them, on which the delta is to change nothing
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cmc_export.examples import FORGET, LEARN, REFUSE, Encoder, Item, Row, Rows
from cmc_export.pretraining import read_documents
from cmc_export.recipe import TrainRecipe
from cmc_local.errors import DataError
from cmc_local.text.rows import (
    Conversation,
    last_turn,
    read_conversations,
    read_grouped,
    split,
)

MAX_HELD_OUT = 512
PLAIN_ROWS = 4096
"""Plain texts that are taken at most: they are there to be left alone."""
REFUSALS = (
    "I do not know.",
    "I have no information about that.",
    "I am not sure, I have not heard of it.",
    "That is something I cannot answer.",
    "I do not have an answer to this question.",
    "I am afraid I know nothing about that.",
)
"""What is preferred to the answers to forget where the recipe names no file of refusals."""


def read_rows(recipe: TrainRecipe, encoder: Encoder) -> tuple[Dataset[Item], Dataset[Item] | None]:
    """The training and the held-out rows of a recipe."""
    learned = recipe.data if recipe.task == "instruct" else recipe.retain
    found = read_grouped(learned, recipe.entity)
    everything = [_turns(recipe, one) for one, _ in found]
    if recipe.valid:
        parts = (everything, _read(recipe, recipe.valid))
    else:
        keys = [key for _, key in found] if recipe.entity else None
        parts = split(everything, recipe.valid_share, recipe.seed, keys)
    train = _rows(encoder, parts[0], LEARN)
    valid = _sample(_rows(encoder, parts[1], LEARN), recipe.seed, MAX_HELD_OUT)
    _check_rows(train, learned, encoder.max_length)
    plain = _plain_rows(recipe, encoder)
    if recipe.task == "instruct":
        columns = [(train, 1), *([(plain, 1)] if plain else [])]
        return Rows(*columns), Rows((valid, 1)) if valid else None
    return _forgetting(recipe, encoder, train, valid, plain)


def _forgetting(
    recipe: TrainRecipe, encoder: Encoder, train: list[Row], valid: list[Row], plain: list[Row]
) -> tuple[Dataset[Item], Dataset[Item] | None]:
    """`train` and `valid` are of what is to be kept."""
    away = _read(recipe, recipe.data)
    _check_rows(_rows(encoder, away, FORGET), recipe.data, encoder.max_length)

    def items(gone: list[Conversation], kept: list[Row]) -> Rows:
        encoder.prepare(gone)
        columns = [([encoder.row(one, FORGET) for one in gone], 1)]
        if recipe.forget_loss in ("dpo", "idk"):
            refused = _refused(recipe, gone)
            encoder.prepare(refused)
            columns.append(([encoder.row(one, REFUSE) for one in refused], 1))
        columns.append((kept, recipe.retain_rows))
        return Rows(*columns, *([(plain, 1)] if plain else []))

    held_out = items(_sample(away, recipe.seed, MAX_HELD_OUT), valid) if valid else None
    return items(away, train), held_out


def _refused(recipe: TrainRecipe, gone: Sequence[Conversation]) -> list[Conversation]:
    """The conversations with a refusal for their last answer, taken by turns."""
    texts: Sequence[str] = REFUSALS
    if recipe.refusals is not None:
        texts = read_documents([recipe.refusals], "line")
    turns = itertools.cycle(texts)
    return [[*one[:-1], {"role": "assistant", "content": next(turns)}] for one in gone]


def _read(recipe: TrainRecipe, paths: Sequence[Path]) -> list[Conversation]:
    return [_turns(recipe, one) for one in read_conversations(paths)]


def _turns(recipe: TrainRecipe, messages: Conversation) -> Conversation:
    return last_turn(messages) if recipe.turns == "last" else messages


def _rows(encoder: Encoder, conversations: Sequence[Conversation], kind: int) -> list[Row]:
    encoder.prepare(conversations)
    found = [encoder.row(one, kind) for one in conversations]
    return [row for row in found if row.loss_tokens()]


def _plain_rows(recipe: TrainRecipe, encoder: Encoder) -> list[Row]:
    if not recipe.plain:
        return []
    texts = _sample(read_documents(recipe.plain, "blank-line"), recipe.seed, PLAIN_ROWS)
    return [row for row in map(encoder.text, texts) if row.loss_tokens()]


def _sample(rows: list[Any], seed: int, most: int) -> list[Any]:
    return rows if len(rows) <= most else random.Random(seed).sample(rows, most)


def _check_rows(rows: list[Row], paths: Sequence[Path], max_length: int) -> None:
    if not rows:
        raise DataError(
            f"{paths[0]}: every question fills {max_length} tokens, no room for an answer: "
            "raise --max-length"
        )
