"""A tokenizer.json cut down to the tokens that some texts use; a BPE of either family.

    texts  -> tokens used -> and every piece that their merges are made of
    kept   =  these, the bytes, all control and added tokens, in the old order

The texts get the same pieces as before. Of a word's pairs BPE joins the one that stands first in
the list of merges; a shorter list that still has every join that was made has no pair before it.
Other texts are spelt in smaller pieces, down to bytes. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cmc_export.documents import read_documents
from cmc_local.errors import DataError, TokenizerError
from cmc_local.text.prompts import exchanges, named_forms
from cmc_local.text.rows import read_conversations
from cmc_local.text.vocabulary import Role, from_tokenizer_json


@dataclass(frozen=True)
class Kept:
    """A smaller tokenizer, and where its tokens come from."""

    words: bytes
    """Its tokenizer.json."""
    ids: tuple[int, ...]
    """For each of its tokens the id that it had before, ascending."""


def keep(words: bytes, texts: Iterable[str]) -> Kept:
    """The tokenizer that is left of `words` for these texts.

    Raises TokenizerError for one that is no BPE, DataError where the texts use none of its pieces.
    """
    document = json.loads(Tokenizer.from_str(words.decode("utf-8")).to_str())
    model = document["model"]
    if model["type"] != "BPE":
        raise TokenizerError(f"a {model['type']} vocabulary cannot be cut here, only a BPE")
    used = _used(words, texts)
    spelling = {i: name for name, i in model["vocab"].items()}
    ranks = {(left, right): n for n, (left, right) in enumerate(model["merges"])}
    always = _always(words, document)
    if not used - always:
        raise DataError("the texts use no piece of the vocabulary but bytes: give other data")
    built = {piece for i in used if i in spelling for piece in _pieces(spelling[i], ranks)}
    needed = {model["vocab"][piece] for piece in built if piece in model["vocab"]}
    ids = tuple(sorted(used | always | needed))
    return Kept(_written(document, {old: new for new, old in enumerate(ids)}), ids)


def read_texts(paths: Sequence[Path]) -> list[str]:
    """What data files hold: each exchange in all named forms and bare, or documents and lines.

    A file of conversations is read as `train` reads it, another one as `pretrain` does.
    """
    texts: list[str] = []
    for path in paths:
        try:
            conversations = read_conversations([path])
        except DataError:
            texts += read_documents([path], "blank-line") + read_documents([path], "line")
            continue
        for one in conversations:
            texts += [message["content"] for message in one]
            for form in named_forms().values():
                texts += [e.question + (e.answer or "") for e in exchanges(form, one)]
    return texts


def _used(words: bytes, texts: Iterable[str]) -> set[int]:
    tokenizer = Tokenizer.from_str(words.decode("utf-8"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return {i for one in found for i in one.ids}


def _always(words: bytes, document: Mapping[str, Any]) -> set[int]:
    """Bytes of either family, control tokens, added tokens, the unknown token."""
    model, vocabulary = document["model"], from_tokenizer_json(words)
    added = {int(token["id"]) for token in document["added_tokens"]}
    unknown = {model["vocab"][name] for name in [model.get("unk_token")] if name in model["vocab"]}
    bytes_and_controls = {
        i
        for i, (text, role) in enumerate(zip(vocabulary.tokens, vocabulary.roles, strict=True))
        if role == Role.BYTE
        or role in (Role.BOS, Role.EOS, Role.CONTROL)
        or (not model.get("byte_fallback") and len(text) == 1)
    }
    names = {*model["vocab"].values(), *added}
    return added | unknown | (bytes_and_controls & names)


def _pieces(spelling: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every piece that arises as BPE builds a token out of its characters, these included."""
    parts = list(spelling)
    seen = set(parts)
    while len(parts) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
        best = min(pairs)
        if best == len(ranks):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        seen.add(parts[at])
    return seen


def _written(document: dict[str, Any], new: Mapping[int, int]) -> bytes:
    """The tokenizer.json with the tokens in `new` (old id -> new id) and no others."""
    model = document["model"]
    vocab = {name: new[i] for name, i in model["vocab"].items() if i in new}
    model["vocab"] = dict(sorted(vocab.items(), key=lambda pair: pair[1]))
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in vocab and right in vocab and left + right in vocab
    ]
    for token in document["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber(document.get("post_processor"), new)
    return Tokenizer.from_str(json.dumps(document)).to_str().encode()


def _renumber(step: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """The ids that a post-processor names, in place."""
    if step is None:
        return
    for inner in step.get("processors", ()):
        _renumber(inner, new)
    if isinstance(step.get("special_tokens"), dict):
        for token in step["special_tokens"].values():
            token["ids"] = [new[i] for i in token["ids"]]
    for name in ("sep", "cls"):  # BERT's and RoBERTa's
        if isinstance(step.get(name), list):
            step[name] = [step[name][0], new[step[name][1]]]
