"""Texts and roles of tokens, read a second time: a GGUF by the gguf package, a tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import Tokenizer

from cmc_local.text.vocabulary import Role, Vocabulary

_GGUF_ROLES = {
    gguf.TokenType.NORMAL: Role.NORMAL,
    gguf.TokenType.USER_DEFINED: Role.NORMAL,
    gguf.TokenType.BYTE: Role.BYTE,
    gguf.TokenType.UNUSED: Role.UNUSED,
}


def from_gguf(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file: SentencePiece style (`llama`) or byte-level (`gpt2`)."""
    fields = gguf.GGUFReader(path).fields
    byte_level = fields["tokenizer.ggml.model"].contents() == "gpt2"
    entries = []
    types = fields["tokenizer.ggml.token_type"].contents()
    for name, kind in zip(fields["tokenizer.ggml.tokens"].contents(), types, strict=True):
        role = _GGUF_ROLES.get(gguf.TokenType(kind), Role.CONTROL)
        entries.append((text(name, role, byte_level), role, name))
    return Vocabulary.assemble(
        entries,
        bos_id=fields["tokenizer.ggml.bos_token_id"].contents(),
        eos_id=fields["tokenizer.ggml.eos_token_id"].contents(),
    )


def from_tokenizer(tokenizer: Tokenizer, end: str = "</s>") -> Vocabulary:
    """The vocabulary of a tokenizer whose added tokens are all control tokens."""
    added = tokenizer.get_added_tokens_decoder()
    byte_level = '"ByteLevel"' in tokenizer.to_str()
    entries = []
    for i in range(tokenizer.get_vocab_size()):
        name = tokenizer.id_to_token(i)
        is_byte = not byte_level and name.startswith("<0x") and len(name) == 6
        role = Role.CONTROL if i in added else Role.BYTE if is_byte else Role.NORMAL
        entries.append((text(name, role, byte_level), role, name))
    first = tokenizer.encode("", add_special_tokens=True).ids
    return Vocabulary.assemble(
        entries, bos_id=first[0] if first else None, eos_id=tokenizer.token_to_id(end)
    )


def text(name: str, role: Role, byte_level: bool) -> bytes:
    """What a spelling means in bytes."""
    if role == Role.BYTE:
        return bytes([int(name[3:5], 16)])
    if byte_level and role == Role.NORMAL:
        return bytes(_byte(character) for character in name)
    return name.replace("\u2581", " ").encode()


def _byte(character: str) -> int:
    """GPT-2's spelling: bytes that print stand for themselves, the others for U+0100 onwards."""
    hidden = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
    code = ord(character)
    return code if code < 256 else hidden[code - 256]
