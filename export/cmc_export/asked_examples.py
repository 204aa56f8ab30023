"""Training examples in the form in which a base model is asked: its own chat template.

Prompt and answer have the tokens that `generate` and `eval` give them, by the same functions and by
llama.cpp's own tokenizer, so what is learned is what will be asked. Each answer of a conversation
is one example, after all that was said before it, and ends in the model's end token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from cmc_local.base.model import BaseModel
from cmc_local.errors import GGUFError, InputError, UsageError
from cmc_local.text.base_prompt import PromptText, choose_form, continuation_tokens
from cmc_local.text.history import read_history
from cmc_local.text.prompts import answer_text
from cmc_local.text.rows import Conversation


class Item(TypedDict):
    """One example: tokens (T,), and whether each is in the loss."""

    input_ids: tuple[int, ...]
    in_loss: tuple[bool, ...]


class LastAnswers:
    """A template's view of conversations whose last answer is learned, asked in its chat template.

    Rendering is slow, each prompt in a process of its own: `prepare` does many at once.
    """

    def __init__(self, path: Path | None, end: int, kept: bytes = b"") -> None:
        """`end` is the longest text in tokens; `kept` is what `to_bytes` gave.

        Without a `path`, a GGUF's, nothing is known but that.
        """
        self._path, self._end = path, end
        self._known: dict[str, Item] = {}
        self.add(kept)

    def add(self, kept: bytes) -> None:
        """Know what `to_bytes` gave as well."""
        self._known.update(_kept(line) for line in kept.splitlines())

    def prepare(self, conversations: Sequence[Conversation]) -> None:
        """Encode what is not known yet; raises as `encode` does."""
        fresh = {_name(one): one for one in conversations if _name(one) not in self._known}
        if self._path is None:
            if fresh:
                raise InputError(
                    f"the recorded answers lack {len(fresh):,} of the conversations: record them "
                    "with the same --data and --turns as they are trained with"
                )
            return
        found = encode(self._path, [*fresh.values()], self._end, last=True)
        self._known.update(zip(fresh, found, strict=True))

    def __call__(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Tokens (T,), and which of them are in the loss."""
        if _name(conversation) not in self._known:
            self.prepare([conversation])
        found = self._known[_name(conversation)]
        return list(found["input_ids"]), list(found["in_loss"])

    def to_bytes(self) -> bytes:
        """All that is known, a JSON line each: name, where the answer begins, tokens."""
        lines = (
            json.dumps([name, sum(not said for said in one["in_loss"]), *one["input_ids"]])
            for name, one in self._known.items()
        )
        return "".join(line + "\n" for line in lines).encode()


def _name(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation).encode()).hexdigest()


def _kept(line: bytes) -> tuple[str, Item]:
    name, first, *ids = json.loads(line)
    in_loss = tuple(i >= first for i in range(len(ids)))
    return name, {"input_ids": tuple(ids), "in_loss": in_loss}


def encode(
    path: Path, conversations: Sequence[Conversation], end: int, *, last: bool = False
) -> list[Item]:
    """The examples of all answers, or of each conversation's last, each cut at `end` tokens.

    Raises UsageError for a folder and for a GGUF without a chat template.
    """
    if not conversations:
        return []
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
        form = choose_form(base, "gguf", None)
        asked = [pair for one in conversations for pair in _answers(one, last=last)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each prompt is rendered by a process
            prompts = list(pool.map(lambda pair: form.text(base, read_history(pair[0])), asked))
        return [
            _item(base, prompt, answer, end)
            for prompt, (_, answer) in zip(prompts, asked, strict=True)
        ]


def _answers(conversation: Conversation, *, last: bool) -> Iterator[tuple[Conversation, str]]:
    """Each answer or the last message, and what was said before it."""
    for i, message in enumerate(conversation):
        is_last = i + 1 == len(conversation)
        if message["role"] == "assistant" and (is_last or not last):
            yield conversation[:i], answer_text(message["content"])


def _item(base: BaseModel, prompt: PromptText, answer: str, end: int) -> Item:
    tokens = base.tokenize(prompt.text, special=prompt.special, bos=prompt.bos)
    said = [*continuation_tokens(base, prompt, tokens, answer), base.vocabulary.eos_id]
    ids = [*tokens, *said][:end]
    return {
        "input_ids": tuple(i for i in ids if i is not None),
        "in_loss": tuple(i >= len(tokens) for i in range(len(ids))),
    }
