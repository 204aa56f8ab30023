"""Conversations -> the rows a delta trains on, and rows -> batches.

A row is the tokens of one conversation in the adapter's prompt form, and for each token whether it
is in the loss; both come from the function that run time uses (DeltaTokenizer).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset

from cmc_export.data import Conversation, last_turn, read_conversations, split
from cmc_export.loop import Batch
from cmc_export.recipe import TrainRecipe
from cmc_local.alignment import DeltaTokenizer
from cmc_local.errors import DataError
from cmc_local.prompts import PromptForm

MAX_HELD_OUT = 512


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: ids (T,), in_loss (T,)."""

    ids: tuple[int, ...]
    in_loss: tuple[bool, ...]
    forget: bool = False


class Item(TypedDict):
    """What a dataset gives; `input_ids` is there for batches of like length."""

    input_ids: tuple[int, ...]
    rows: list[Row]


class Examples(Dataset[Item]):
    """One row an item."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return {"input_ids": self.rows[index].ids, "rows": [self.rows[index]]}


class Pairs(Dataset[Item]):
    """A row to forget and `per_row` rows to keep an item; the shorter set comes round again.

    An epoch sees every row of both sets at least once.
    """

    def __init__(self, forget: Sequence[Row], retain: Sequence[Row], per_row: int) -> None:
        self.forget, self.retain, self.per_row = list(forget), list(retain), per_row
        self.rows = [*self.forget, *self.retain]

    def __len__(self) -> int:
        return max(len(self.forget), -(-len(self.retain) // self.per_row))

    def __getitem__(self, index: int) -> Item:
        away = self.forget[index % len(self.forget)]
        first = index * self.per_row
        kept = [self.retain[(first + i) % len(self.retain)] for i in range(self.per_row)]
        return {"input_ids": away.ids, "rows": [away, *kept]}


@dataclass(frozen=True)
class RowSizes:
    """Tokens of each row, and how many of them are in the loss."""

    lengths: list[int]
    in_loss: list[int]


def loss_tokens(rows: Dataset[Any]) -> RowSizes:
    """The sizes of a dataset's rows."""
    found: list[Row] = rows.rows
    return RowSizes([len(row.ids) for row in found], [sum(row.in_loss) for row in found])


def read_examples(
    recipe: TrainRecipe, tokenizer: DeltaTokenizer, form: PromptForm, max_length: int
) -> tuple[Dataset[Item], Dataset[Item] | None]:
    """The training and the held-out rows of a recipe."""

    def rows(conversations: Sequence[Conversation], forget: bool = False) -> list[Row]:
        kept = [last_turn(c) if recipe.turns == "last" else c for c in conversations]
        found = [encode(tokenizer, form, one, max_length, forget) for one in kept]
        return [row for row in found if any(row.in_loss)]

    learned = recipe.data if recipe.task == "instruct" else recipe.retain
    if recipe.valid:
        parts = (read_conversations(learned), read_conversations(recipe.valid))
    else:
        parts = split(read_conversations(learned), recipe.valid_share, recipe.seed)
    train, valid = rows(parts[0]), _sample(rows(parts[1]), recipe.seed)
    _check_rows(train, learned, max_length)
    if recipe.task == "instruct":
        return Examples(train), Examples(valid) if valid else None
    away = rows(read_conversations(recipe.data), forget=True)
    _check_rows(away, recipe.data, max_length)
    held_out = Pairs(_sample(away, recipe.seed), valid, recipe.retain_rows) if valid else None
    return Pairs(away, train, recipe.retain_rows), held_out


def encode(
    tokenizer: DeltaTokenizer,
    form: PromptForm,
    messages: Conversation,
    max_length: int,
    forget: bool = False,
) -> Row:
    """One conversation as a row; what is longer than `max_length` loses its end (and its EOS)."""
    ids, in_loss = tokenizer.example(form, messages)
    return Row(tuple(ids[:max_length]), tuple(in_loss[:max_length]), forget)


def collate(items: Sequence[Item]) -> Batch:
    """Items -> a batch padded on the right, T tokens less the last.

    input_ids (B, T-1) int64; targets (B, T-1) int64, the next tokens; keep (B, T-1) bool, whether
    the next token is in the loss; forget (B,) bool.
    """
    rows = [row for item in items for row in item["rows"]]
    width = max(len(row.ids) for row in rows) - 1
    ids = torch.zeros(len(rows), width + 1, dtype=torch.int64)
    keep = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        keep[i, : len(row.ids) - 1] = torch.tensor(row.in_loss[1:])
    return {
        "input_ids": ids[:, :-1].contiguous(),
        "targets": ids[:, 1:].contiguous(),
        "keep": keep,
        "forget": torch.tensor([row.forget for row in rows]),
    }


def _sample(rows: list[Row], seed: int) -> list[Row]:
    return rows if len(rows) <= MAX_HELD_OUT else random.Random(seed).sample(rows, MAX_HELD_OUT)


def _check_rows(rows: list[Row], paths: Sequence[Path], max_length: int) -> None:
    if not rows:
        raise DataError(
            f"{paths[0]}: every question fills {max_length} tokens, no room for an answer: "
            "raise --max-length"
        )
