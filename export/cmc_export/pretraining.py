"""A plain language-model pass over text files: bases from scratch, and deltas before `train`.

    documents --> [BOS] ids [EOS] [BOS] ids [EOS] ... --> rows of row_length + 1 tokens

A row's first `row_length` tokens are the input, its last `row_length` the targets, so no position
is wasted; attention may look past a document's end within a row.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM

from cmc_export import delta_model
from cmc_export.documents import read_documents
from cmc_export.healing import Distillation, open_teacher
from cmc_export.initial_model import Start, begin, tokenizer_json
from cmc_export.loop import (
    Batch,
    Objective,
    check_output,
    fit,
    total_steps,
    use_bf16,
    write_output,
)
from cmc_export.recipe import PretrainRecipe, Shape, as_json
from cmc_export.tokenizer_training import sentencepiece_style
from cmc_local.errors import DataError, InputError, TokenizerError, UsageError
from cmc_local.text.vocabulary import Vocabulary, from_tokenizer_json

MAX_HELD_OUT_ROWS = 128
TOKENIZER_SAMPLE = 20_000
"""Documents that a new tokenizer is trained on at most."""


class Rows(Dataset[Tensor]):
    """Packed rows, (N, row_length + 1) int32."""

    def __init__(self, tokens: NDArray[np.int32]) -> None:
        self.tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]


class NextToken(Objective):
    """Cross-entropy of every next token."""

    def counts(self, batch: Batch) -> Tensor:
        """(1,) float: the targets of the batch."""
        return torch.tensor([float(batch["targets"].numel())])

    def loss(self, model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """The mean over the step's targets, () float32, nats."""
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )
        return losses / counts[0]


def pretrain(recipe: PretrainRecipe) -> dict[str, Any]:
    """Run it all: read, pack, train, write the folder; returns the summary.

    With `resume` a finished output is left as it is, and an unfinished run goes on.
    """
    if not check_output(recipe):
        return {"output": str(recipe.output), "already_there": True}
    start, words, model, rows = _prepare(recipe)
    objective: Objective = NextToken()
    if recipe.teacher is not None:
        teacher = open_teacher(recipe.teacher, start, words)
        if use_bf16(recipe):
            delta_model.shrink(teacher)
        objective = Distillation(teacher, recipe.teacher_weight, objective)
    summary = fit(model, objective, rows, collate, recipe)
    if start is not None:
        summary = {**summary, **_sizes(start)}
    write_output(
        recipe.output,
        model,
        words,
        {"pretraining.json": json.dumps({**summary, "recipe": as_json(recipe)}, indent=2) + "\n"},
    )
    return {"output": str(recipe.output), **summary}


def plan(recipe: PretrainRecipe) -> dict[str, Any]:
    """What `pretrain` would do, without doing it: parameters, tokens, steps."""
    start, _, model, (train_rows, valid_rows) = _prepare(recipe)
    steps = total_steps(recipe, len(train_rows))
    return {
        **({} if start is None else _sizes(start)),
        "parameters": model.num_parameters(),
        "tokens": len(train_rows) * recipe.row_length,
        "held_out_tokens": len(valid_rows) * recipe.row_length if valid_rows is not None else 0,
        "steps": steps,
        "tokens_in_all": steps * recipe.batch * recipe.accumulation * recipe.row_length,
    }


def _prepare(
    recipe: PretrainRecipe,
) -> tuple[Start | None, bytes, LlamaForCausalLM, tuple[Rows, Rows | None]]:
    """What it begins from, the tokenizer.json, the model, and the rows."""
    start = begin(recipe, recipe.tokenizer)
    words = words_of(recipe, start)
    tokenizer, vocabulary = read_tokenizer(words)
    model = start_model(recipe, vocabulary, recipe.seed, start)
    _check_row_length(recipe, model)
    return start, words, model, read_rows(recipe, tokenizer, vocabulary)


def _sizes(start: Start) -> dict[str, int]:
    """What was left of `init`."""
    before = start.vocabulary_before
    return {
        "parameters_before": start.parameters_before,
        "layers": start.model.config.num_hidden_layers,
        "vocabulary_before": before,
        "vocabulary": start.model.config.vocab_size,
    }


def words_of(recipe: PretrainRecipe, start: Start | None) -> bytes:
    """The recipe's tokenizer.json: `init`'s, a given one, or a new one of the texts."""
    if start is not None:
        if start.words is None:
            raise TokenizerError(f"{recipe.init} has no tokenizer.json: give --tokenizer FILE")
        return start.words
    if recipe.tokenizer is not None:
        return tokenizer_json(recipe.tokenizer)
    documents = read_documents(recipe.text, recipe.document_separator)
    sample = random.Random(recipe.seed).sample(documents, min(len(documents), TOKENIZER_SAMPLE))
    try:
        return sentencepiece_style(sample, recipe.vocabulary).to_str().encode()
    except ValueError as error:
        raise UsageError(f"vocabulary {recipe.vocabulary} is too small: {error}") from None


def read_tokenizer(words: bytes) -> tuple[Tokenizer, Vocabulary]:
    """The tokenizer of a tokenizer.json; special spellings inside a text are plain text."""
    vocabulary = from_tokenizer_json(words)
    tokenizer = Tokenizer.from_str(words.decode())
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, vocabulary


def start_model(
    shape: Shape, vocabulary: Vocabulary, seed: int, start: Start | None = None
) -> LlamaForCausalLM:
    """The model before its first step: `start`'s, or a new one of the preset's shape."""
    if start is not None:
        if start.model.config.vocab_size != len(vocabulary):
            raise InputError(
                f"{shape.init} has {start.model.config.vocab_size:,} tokens, the tokenizer "
                f"{len(vocabulary):,}: give the tokenizer that the model was trained with"
            )
        return start.model
    sizes = {name: getattr(shape, name) or None for name in _SHAPE}
    wanted = delta_model.preset(
        shape.shape, vocabulary=len(vocabulary), context=shape.context, **sizes
    )
    return delta_model.build(
        wanted, tied=shape.tied, bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id, seed=seed
    )


_SHAPE = ("width", "layers", "heads", "kv_heads", "mlp")


def read_rows(
    recipe: PretrainRecipe, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> tuple[Rows, Rows | None]:
    """Training and held-out rows; documents are shuffled once, and held out whole."""
    documents = read_documents(recipe.text, recipe.document_separator)
    random.Random(recipe.seed).shuffle(documents)
    encoded = _encode(documents, tokenizer, vocabulary)
    if recipe.valid_text:
        held_out = _encode(
            read_documents(recipe.valid_text, recipe.document_separator), tokenizer, vocabulary
        )
    else:
        count = min(int(len(encoded) * recipe.valid_share), len(encoded) - 1)
        encoded, held_out = encoded[count:], encoded[:count]
    train = pack(encoded, recipe.row_length)
    if not len(train):
        raise DataError(
            f"{recipe.text[0]}: fewer than {recipe.row_length + 1} tokens in all: "
            "give more text or a smaller --row-length"
        )
    valid = pack(held_out, recipe.row_length)[:MAX_HELD_OUT_ROWS]
    return Rows(train), Rows(valid) if len(valid) else None


def _encode(
    documents: list[str], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> list[NDArray[np.int32]]:
    begin = [vocabulary.bos_id] if vocabulary.bos_id is not None else []
    end = [vocabulary.eos_id] if vocabulary.eos_id is not None else []
    encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    return [np.array([*begin, *one.ids, *end], dtype=np.int32) for one in encodings]


def pack(documents: Sequence[NDArray[np.int32]], row_length: int) -> NDArray[np.int32]:
    """(N, row_length + 1) int32: each row begins with the token that the one before ended with.

    >>> pack([np.array([1, 5, 2], np.int32), np.array([1, 6, 2], np.int32)], 2).tolist()
    [[1, 5, 2], [2, 1, 6]]
    """
    stream = np.concatenate(documents) if documents else np.empty(0, np.int32)
    count = max(0, (len(stream) - 1) // row_length)
    index = np.arange(count)[:, None] * row_length + np.arange(row_length + 1)
    return np.ascontiguousarray(stream[index], dtype=np.int32)


def collate(rows: Sequence[Tensor]) -> Batch:
    """Rows -> input_ids and targets, both (B, row_length) int64."""
    stacked = torch.stack(list(rows)).long()
    return {"input_ids": stacked[:, :-1].contiguous(), "targets": stacked[:, 1:].contiguous()}


def _check_row_length(recipe: PretrainRecipe, model: LlamaForCausalLM) -> None:
    context = model.config.max_position_embeddings
    if recipe.row_length > context:
        raise UsageError(
            f"row_length {recipe.row_length} is beyond the context of {context}: "
            "shorten it, or raise --context"
        )
