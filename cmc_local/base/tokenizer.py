"""A GGUF's own tokenisation of a text, its weights unread: for counting, not for generating."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from cmc_local.base import library as base_library
from cmc_local.base.library import llama_cpp


def encode(gguf: str | Path, text: str) -> list[int]:
    """The base's tokens of a whole text; no BOS, control tokens' spellings are plain text.

    Raises GGUFError.
    """
    model = base_library.load(Path(gguf), vocab_only=True)
    try:
        data = text.encode("utf-8", "replace")
        return _encode(llama_cpp.llama_model_get_vocab(model), data, len(data) + 16)
    finally:
        llama_cpp.llama_model_free(model)


def _encode(vocab: Any, data: bytes, room: int) -> list[int]:
    buffer = (ctypes.c_int32 * room)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, room, False, False)
    if count < 0:  # it says how much room it wants
        return _encode(vocab, data, -count)
    return list(buffer[:count])
