"""A GGUF's vocabulary, from llama.cpp's own token data, and its metadata.

llama.cpp reads 128,256 tokens in half a second with `vocab_only`. It knows which tokens end a
generation and which are control tokens; what a spelling means in bytes is `vocabulary.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmc_local import base_header, base_library
from cmc_local.base_library import llama_cpp
from cmc_local.errors import GGUFError
from cmc_local.vocabulary import (
    Role,
    Vocabulary,
    byte_level_bytes,
    byte_value,
    is_unused_name,
    metaspace_bytes,
    plain_bytes,
)

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
    model = base_library.load(path, vocab_only=True)
    try:
        return vocabulary_of(llama_cpp.llama_model_get_vocab(model), path)
    finally:
        llama_cpp.llama_model_free(model)


def read_metadata(gguf: str | Path) -> dict[str, base_header.Value | base_header.Array]:
    """The GGUF's metadata; of a list only the length. Raises GGUFError."""
    return base_header.read(Path(gguf)).metadata


def kind_of(metadata: Mapping[str, object]) -> str:
    """What kind of vocabulary a GGUF has, for people; llama.cpp's own name where it has none."""
    model = metadata.get("tokenizer.ggml.model", "none")
    return _NAMES.get(str(model), str(model))


def vocabulary_of(vocab: Any, path: Path) -> Vocabulary:
    """The vocabulary of an open model; `vocab` is a `llama_vocab *`."""
    kind = int(llama_cpp.llama_vocab_type(vocab))
    if kind not in _TEXT_OF:
        raise GGUFError(
            f"{path} has a vocabulary of llama.cpp's type {kind}: choose a model with a BPE,"
            " Unigram or WordPiece vocabulary"
        )
    eos_id = _own_id(llama_cpp.llama_vocab_eos(vocab))
    bos_id = _own_id(llama_cpp.llama_vocab_bos(vocab))
    return Vocabulary.assemble(_entries(vocab, _TEXT_OF[kind]), eos_id=eos_id, bos_id=bos_id)


def _own_id(token: int) -> int | None:
    return None if token < 0 else int(token)


def _entries(vocab: Any, text_of: Callable[[str], bytes]) -> Iterator[tuple[bytes, Role, str]]:
    """(text, role, spelling) of each token."""
    for token in range(llama_cpp.llama_vocab_n_tokens(vocab)):
        spelling = (llama_cpp.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", "replace")
        attributes = llama_cpp.llama_vocab_get_attr(vocab, token)
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            yield b"", Role.EOS, spelling
        elif attributes & _UNUSED or is_unused_name(spelling):
            yield b"", Role.UNUSED, spelling
        elif attributes & (_CONTROL | _UNKNOWN):
            yield b"", Role.CONTROL, spelling
        elif attributes & _BYTE and (byte := byte_value(spelling)) is not None:
            yield bytes([byte]), Role.BYTE, spelling
        elif attributes & _USER_DEFINED and text_of is byte_level_bytes:
            yield plain_bytes(spelling), Role.NORMAL, spelling  # added tokens are spelled plainly
        else:
            yield text_of(spelling), Role.NORMAL, spelling
