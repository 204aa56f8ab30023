"""Texts as vectors: a base model's last hidden states, pooled over the tokens and normalised.

    embedding = Embedding(model, path, limit=4096, contexts=[])
    embedding([1, 300, 17], new_context)        (d,) float32 of length 1

Pooled as the GGUF's `<architecture>.pooling_type` says (mean, cls: the first token, last), by the
mean where it says nothing. The hidden states are those after the last norm, before the output head.
They come from a context of their own, so that the caches and logits of replies stay as they are; it
is made when first used, as long as the longest text so far. Knows nothing of replies or adapters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.batch import LlamaBatch
from cmc_local.base.library import llama_cpp
from cmc_local.base.span import Span
from cmc_local.errors import GGUFError, PromptTooLong, UsageError

BATCH = 128
"""Tokens at once: llama.cpp computes and keeps the logits of each of them too."""
_SHORTEST = 512
NO_POOLING, _MEAN, _CLS, _LAST = range(4)  # llama_pooling_type
_POOLS: dict[int, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
    _MEAN: lambda states: states.sum(axis=0, dtype=np.float64),  # its length is made 1 anyway
    _CLS: lambda states: states[0].astype(np.float64),
    _LAST: lambda states: states[-1].astype(np.float64),
}


class Embedding:
    """The vectors of texts, each from its tokens."""

    def __init__(self, model: Any, path: Path, *, limit: int, contexts: list[Any]) -> None:
        """For a `llama_model *` from `path` and texts of at most `limit` tokens.

        Its context stands in `contexts`, whose owner frees them with the model; one that has
        become too short is freed here and taken out.
        """
        self._pool = _POOLS.get(_pooling(model))
        self._size = int(llama_cpp.llama_model_n_embd_out(model))
        self._path, self._limit = path, limit
        self._contexts = contexts
        self._context: Any = None
        self._room = 0
        self._batch = LlamaBatch(BATCH)

    def __call__(
        self, tokens: Sequence[int], new_context: Callable[[int], Any]
    ) -> NDArray[np.float32]:
        """(d,) float32, of Euclidean length 1.

        `new_context` makes a `llama_context *` of one sequence, of so many tokens, that gives
        embeddings without pooling, and puts it into `contexts`.
        """
        if not tokens:
            raise UsageError("there is nothing to embed: give at least one token")
        if len(tokens) > self._limit:
            raise PromptTooLong(
                f"{len(tokens)} tokens to embed do not fit the base model's context of"
                f" {self._limit}: split the text or load the model with a larger context"
            )
        if self._pool is None:
            raise GGUFError(f"{self._path} ranks texts and embeds none: choose another model")
        self._make_room(len(tokens), new_context)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        states = np.concatenate(
            [self._states(tokens[at : at + BATCH], at) for at in range(0, len(tokens), BATCH)]
        )
        pooled = self._pool(states)
        return (pooled / (np.linalg.norm(pooled) or 1.0)).astype(np.float32)

    def _make_room(self, tokens: int, new_context: Callable[[int], Any]) -> None:
        if tokens <= self._room:
            return
        if self._context is not None:
            self._contexts.remove(self._context)
            llama_cpp.llama_free(self._context)
            self._context, self._room = None, 0
        room = min(self._limit, max(_SHORTEST, 1 << (tokens - 1).bit_length()))
        self._context = new_context(room)
        self._room = room

    def _states(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """(len(tokens), d) float32, the hidden states of the text's next tokens."""
        self._batch.fill([Span(0, start, tokens, range(len(tokens)))])
        code = llama_cpp.llama_decode(self._context, self._batch.struct)
        pointer = None if code else llama_cpp.llama_get_embeddings(self._context)
        if not pointer:
            raise GGUFError(f"{self._path}: llama.cpp could not embed the text (its code {code})")
        view: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (len(tokens), self._size))
        return view.copy()


def _pooling(model: Any) -> int:
    """The `llama_pooling_type` that the GGUF names, else the mean."""
    architecture = _text(model, "general.architecture")
    named = int(_text(model, f"{architecture}.pooling_type") or NO_POOLING)
    return named if named != NO_POOLING else _MEAN


def _text(model: Any, key: str) -> str:
    """A value of the GGUF's metadata as text; "" where there is none."""
    buffer = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode()
