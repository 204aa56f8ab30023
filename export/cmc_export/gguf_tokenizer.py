"""A tokenizer.json as the tokenizer keys of a GGUF file.

Two families: a byte-level BPE (llama.cpp's `gpt2`, pre-tokenizer `gpt-2`) keeps its list of merges;
a BPE with byte fallback (llama.cpp's `llama`, SentencePiece) becomes scores. llama.cpp then joins
the two neighbours whose joined text has the best score, so a piece's score is minus its place in
the list of merges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from cmc_local.errors import TokenizerError

_SPACE = "\u2581"
_NEVER = -1e6  # the score of a token that no two others join to


def add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], vocab_size: int
) -> None:
    """Add the tokenizer of `folder` with its control tokens and chat template.

    `vocab_size` is the model's; ids that the tokenizer does not use become unused tokens.
    Raises TokenizerError for a missing, damaged or other kind of tokenizer.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"{path} is missing: save the tokenizer into the folder") from None
    except Exception as error:  # `tokenizers` raises Exception itself
        raise TokenizerError(f"{path} cannot be read ({error}): save it again") from None
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    names = _names(tokenizer, vocab_size, path)
    if document["model"]["type"] != "BPE":
        raise TokenizerError(f"{path} is a {document['model']['type']}: only BPE is written here")
    if document["model"].get("byte_fallback"):
        _add_sentencepiece(writer, document, names)
    else:
        _add_byte_level(writer, document, names, path)
    writer.add_token_list(names)
    writer.add_token_types(_types(names, document))
    _add_control_ids(writer, tokenizer, config, document)
    template = _chat_template(folder)
    if template is not None:
        writer.add_chat_template(template)


def _names(tokenizer: Tokenizer, vocab_size: int, path: Path) -> list[str]:
    """The spelling of each id; `[PAD7]` where the tokenizer has no token 7."""
    by_id = {i: name for name, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= vocab_size:
        raise TokenizerError(
            f"{path} has token {max(by_id)}, the model only {vocab_size} tokens:"
            " this is another model's tokenizer"
        )
    return [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]


def _add_sentencepiece(writer: gguf.GGUFWriter, document: dict[str, Any], names: list[str]) -> None:
    rank: dict[str, int] = {}
    for left, right in document["model"]["merges"]:
        rank.setdefault(left + right, len(rank))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank[name]) if name in rank else _NEVER for name in names])
    writer.add_add_space_prefix(_puts_space_first(document))


def _puts_space_first(document: dict[str, Any]) -> bool:
    parts = [*_parts(document["normalizer"]), *_parts(document["pre_tokenizer"])]
    return any(
        part.get("prepend") == _SPACE or part.get("prepend_scheme") in ("always", "first")
        for part in parts
    )


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list."""
    if step is None:
        return []
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    return [step, *(part for sub in inner for part in _parts(sub))]


def _add_byte_level(
    writer: gguf.GGUFWriter, document: dict[str, Any], names: list[str], path: Path
) -> None:
    split = document["pre_tokenizer"] or {}
    plain = split.get("type") == "ByteLevel" and split.get("use_regex", True)
    if not plain or split.get("add_prefix_space") or document["normalizer"]:
        raise TokenizerError(
            f"{path} is neither a BPE with byte fallback nor one split in GPT-2's manner:"
            " convert it with llama.cpp's own scripts"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges([f"{left} {right}" for left, right in document["model"]["merges"]])


def _types(names: list[str], document: dict[str, Any]) -> list[gguf.TokenType]:
    model = document["model"]
    kinds = dict.fromkeys(model["vocab"], gguf.TokenType.NORMAL)
    if model.get("byte_fallback"):
        kinds.update((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256))
    for token in document["added_tokens"]:
        special = token["special"]
        kinds[token["content"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if model.get("unk_token") is not None:
        kinds[model["unk_token"]] = gguf.TokenType.UNKNOWN
    return [kinds.get(name, gguf.TokenType.UNUSED) for name in names]


def _add_control_ids(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, config: dict[str, Any], document: dict[str, Any]
) -> None:
    begin, end = _first_id(config.get("bos_token_id")), _first_id(config.get("eos_token_id"))
    if end is None:  # llama.cpp would take token 11 or 2 for it
        raise TokenizerError("config.json names no eos_token_id: say which token ends a text")
    writer.add_bos_token_id(end if begin is None else begin)
    writer.add_eos_token_id(end)
    unknown = document["model"].get("unk_token")
    if unknown is not None:
        writer.add_unk_token_id(tokenizer.token_to_id(unknown))
    around = tokenizer.encode("", add_special_tokens=True).ids
    writer.add_add_bos_token(begin is not None and around[:1] == [begin])
    writer.add_add_eos_token(end != begin and around[-1:] == [end])


def _first_id(value: int | list[int] | None) -> int | None:
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _chat_template(folder: Path) -> str | None:
    """The folder's Jinja chat template, in either of the two places where it can be."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = json.loads(settings.read_text("utf-8")).get("chat_template")
    return template if isinstance(template, str) else None
