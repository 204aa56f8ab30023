"""How much memory a base model will take, from its header alone: an estimate, rather high than low.

    file size  +  2 x layers x context x key-value heads x head size x 2 bytes, for each sequence

Layers that look back less far than the context (Gemma's) take less than that. What llama.cpp needs
beside, its compute buffers, is left out.
"""

from __future__ import annotations

from pathlib import Path

from cmc_local.base import gguf_header
from cmc_local.base.model import USUAL_CONTEXT

_NUMBER_BYTES = 2  # the cache holds halves


def estimate(gguf: Path, *, context: int, sequences: int) -> int:
    """Bytes for a model with so many sequences of so many tokens; `context` 0 is the usual one.

    Raises GGUFError for a file that is none.
    """
    architecture = gguf_header.read(gguf).metadata.get("general.architecture", "")
    per_layer = f"{architecture}.attention.head_count_kv"  # a number, or a list of them
    metadata = gguf_header.read(gguf, lists={per_layer}).metadata

    def number(name: str, otherwise: int = 0) -> int:
        value = metadata.get(f"{architecture}.{name}", otherwise)
        return max(value, default=0) if isinstance(value, list) else int(value)

    heads = number("attention.head_count")
    width = number("embedding_length") // max(heads, 1)
    keys = number("attention.key_length", width)
    values = number("attention.value_length", width)
    tokens = context or min(number("context_length", USUAL_CONTEXT), USUAL_CONTEXT)
    row = number("attention.head_count_kv", heads) * (keys + values) * _NUMBER_BYTES
    return gguf.stat().st_size + number("block_count") * tokens * sequences * row
