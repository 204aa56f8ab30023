"""A GGUF's tokens, its end tokens among them, by its lists and llama.cpp; its tokens of a text.

Spellings and types are read from the file. llama.cpp (half a second for 262,144 tokens with
`vocab_only`) knows which tokens end a generation and which are control tokens, and is asked about
every one that may be; what a spelling means in bytes is `text/vocabulary.py`'s.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmc_local.base import gguf_header
from cmc_local.base import library as base_library
from cmc_local.base.library import llama_cpp
from cmc_local.errors import GGUFError
from cmc_local.text.vocabulary import (
    Role,
    Vocabulary,
    byte_level_bytes,
    byte_value,
    is_unused_name,
    metaspace_bytes,
    plain_bytes,
)

_NORMAL = 1  # enum llama_token_type
# enum llama_token_attr
_UNKNOWN, _UNUSED, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 8, 16, 32

# enum llama_vocab_type -> how a spelling becomes text: SentencePiece BPE, byte-level BPE, WordPiece
# and Unigram. llama.cpp itself turns WordPiece's `##ing` and `word` into `ing` and U+2581 `word`.
_TEXT_OF: dict[int, Callable[[str], bytes]] = {
    1: metaspace_bytes,
    2: byte_level_bytes,
    3: metaspace_bytes,
    4: metaspace_bytes,
}
_NAMES = {
    "llama": "SentencePiece BPE",
    "gpt2": "byte-level BPE",
    "bert": "WordPiece",
    "t5": "Unigram",
}


def read_vocabulary(gguf: str | Path) -> Vocabulary:
    """The vocabulary of a GGUF file, its weights unread. Raises GGUFError."""
    path = Path(gguf)
    with ThreadPoolExecutor(1) as beside:  # llama.cpp reads it while Python does
        listed = beside.submit(_listed, path)
        model = base_library.load(path, vocab_only=True)
    try:
        return _vocabulary(llama_cpp.llama_model_get_vocab(model), path, listed.result())
    finally:
        llama_cpp.llama_model_free(model)


def kind_of(metadata: Mapping[str, object]) -> str:
    """What kind of vocabulary a GGUF has, for people; llama.cpp's own name where it has none."""
    model = metadata.get("tokenizer.ggml.model", "none")
    return _NAMES.get(str(model), str(model))


def vocabulary_of(vocab: Any, path: Path) -> Vocabulary:
    """The vocabulary of an open model; `vocab` is a `llama_vocab *`, `path` its GGUF."""
    return _vocabulary(vocab, path, _listed(path))


def encode(gguf: str | Path, text: str) -> list[int]:
    """The tokens of a whole text by a GGUF whose weights stay unread: for counting.

    No BOS; the spellings of control tokens are plain text. Raises GGUFError.
    """
    model = base_library.load(Path(gguf), vocab_only=True)
    try:
        return tokenize(llama_cpp.llama_model_get_vocab(model), text)
    finally:
        llama_cpp.llama_model_free(model)


def tokenize(vocab: Any, text: str, *, special: bool = False) -> list[int]:
    """The tokens of a text by a `llama_vocab *`, no BOS and no EOS added.

    `special` reads the spellings of control tokens as these.
    """
    data = text.encode("utf-8", "replace")
    count = -(len(data) + 16)
    while count < 0:  # llama.cpp says how much room it wants
        room = -count
        buffer = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, room, False, special)
    return list(buffer[:count])


@dataclass(frozen=True)
class _Listed:
    """A tokenizer's lists, as they stand in the GGUF; empty where they could not be read."""

    names: list[str]
    types: list[int]
    """`llama_token_type` of each, all normal where the GGUF says nothing."""
    special: list[int]
    """Tokens that the metadata names for a part: EOS, padding, ..."""


def _listed(path: Path) -> _Listed:
    tokens, types = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
    try:
        found = gguf_header.read(path, lists={tokens, types}).metadata
    except GGUFError:  # llama.cpp says what is wrong, or has the model open and knows all
        return _Listed([], [], [])
    names = found.get(tokens, [])
    special = [value for key, value in found.items() if key.endswith("_token_id")]
    return _Listed(names, found.get(types, [_NORMAL] * len(names)), special)


def _vocabulary(vocab: Any, path: Path, listed: _Listed) -> Vocabulary:
    kind = int(llama_cpp.llama_vocab_type(vocab))
    if kind not in _TEXT_OF:
        raise GGUFError(
            f"{path} has a vocabulary of llama.cpp's type {kind}: choose a model with a BPE,"
            " Unigram or WordPiece vocabulary"
        )
    size, text_of = int(llama_cpp.llama_vocab_n_tokens(vocab)), _TEXT_OF[kind]
    eos_id = _own_id(llama_cpp.llama_vocab_eos(vocab))
    bos_id = _own_id(llama_cpp.llama_vocab_bos(vocab))
    if len(listed.names) != size or len(listed.types) < size:  # then each of them is asked about
        listed = _Listed([""] * size, [_NORMAL] * size, [])
    names = listed.names
    tokens, roles = [text_of(name) for name in names], np.zeros(size, np.uint8)
    ends = [token for token in (bos_id, eos_id) if token is not None]
    for token in {*_doubtful(listed), *ends}:
        names[token], tokens[token], roles[token] = _asked(vocab, token, text_of)
    # One token for both ends counts as EOS.
    for end, role in ((bos_id, Role.BOS), (eos_id, Role.EOS)):
        if end is not None:
            tokens[end], roles[end] = b"", role
    return Vocabulary(tuple(tokens), roles, tuple(names), eos_id, bos_id)


def _own_id(token: int) -> int | None:
    return None if token < 0 else int(token)


def _doubtful(listed: _Listed) -> Iterator[int]:
    """Tokens that llama.cpp is to be asked about; the others are text and nothing else.

    It tells a control token by its type, by the metadata's word or by its spelling, and each of
    those spellings has an angle or a square bracket. A call for each of 262,144 takes a second.
    """
    yield from (token for token in listed.special if 0 <= token < len(listed.names))
    for token, (name, kind) in enumerate(zip(listed.names, listed.types, strict=False)):
        if kind != _NORMAL or not name or "<" in name or "[" in name:
            yield token


def _asked(vocab: Any, token: int, text_of: Callable[[str], bytes]) -> tuple[str, bytes, Role]:
    """Spelling, text and role of a token, by llama.cpp's word."""
    spelling = (llama_cpp.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", "replace")
    attributes = llama_cpp.llama_vocab_get_attr(vocab, token)
    if llama_cpp.llama_vocab_is_eog(vocab, token):
        return spelling, b"", Role.EOS
    if attributes & _UNUSED or is_unused_name(spelling):
        return spelling, b"", Role.UNUSED
    if attributes & (_CONTROL | _UNKNOWN):
        return spelling, b"", Role.CONTROL
    if attributes & _BYTE and (byte := byte_value(spelling)) is not None:
        return spelling, bytes([byte]), Role.BYTE
    if attributes & _USER_DEFINED and text_of is byte_level_bytes:
        return spelling, plain_bytes(spelling), Role.NORMAL  # added tokens are spelled plainly
    return spelling, text_of(spelling), Role.NORMAL
