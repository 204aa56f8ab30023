"""Training examples in the form in which a base model is asked: its own chat template.

Prompt and answer have the tokens that `generate` and `eval` give them, by the same functions and by
llama.cpp's own tokenizer, so what is learned is what will be asked. Each answer of a conversation
is one example, after all that was said before it, and ends in the model's end token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from cmc_local.base_model import BaseModel
from cmc_local.conversation import PromptText, choose_asking, continuation_tokens
from cmc_local.conversations import Conversation
from cmc_local.errors import GGUFError, UsageError
from cmc_local.prompts import answer_text


class Item(TypedDict):
    """One example: tokens (T,), and whether each is in the loss."""

    input_ids: tuple[int, ...]
    in_loss: tuple[bool, ...]


def encode(path: Path, conversations: Sequence[Conversation], end: int) -> list[Item]:
    """The examples of all answers, each cut at `end` tokens.

    Raises UsageError for a folder and for a GGUF without a chat template.
    """
    if path.is_dir():
        raise UsageError(
            f"prompt gguf is the chat template of a GGUF, {path} is a folder: give the GGUF that "
            "the model runs as, or another prompt form"
        )
    with BaseModel(path, context=32, threads=1, gpu_layers=0) as base:
        if base.chat_template is None:
            raise UsageError(
                f"{path} carries no chat template: give --prompt plain, in which such a model is "
                "asked without an adapter, or another form"
            )
        if base.vocabulary.eos_id is None:
            raise GGUFError(f"{path} names no end token, so no answer can end: convert it anew")
        asking = choose_asking(base, "gguf", None)
        asked = [pair for one in conversations for pair in _answers(one)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each prompt is rendered by a process
            prompts = list(pool.map(lambda pair: asking.text(base, pair[0]), asked))
        return [
            _item(base, prompt, answer, end)
            for prompt, (_, answer) in zip(prompts, asked, strict=True)
        ]


def _answers(conversation: Conversation) -> Iterator[tuple[Conversation, str]]:
    """Each answer, and what was said before it."""
    for i, message in enumerate(conversation):
        if message["role"] == "assistant":
            yield conversation[:i], answer_text(message["content"])


def _item(base: BaseModel, prompt: PromptText, answer: str, end: int) -> Item:
    tokens = base.tokenize(prompt.text, special=prompt.special, bos=prompt.bos)
    said = [*continuation_tokens(base, prompt, tokens, answer), base.vocabulary.eos_id]
    ids = [*tokens, *said][:end]
    return {
        "input_ids": tuple(i for i in ids if i is not None),
        "in_loss": tuple(i >= len(tokens) for i in range(len(ids))),
    }
