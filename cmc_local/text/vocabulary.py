"""What each token of a tokenizer means: its text as bytes, its role, its spelling.

A spelling is how a tokenizer writes a token down (`▁Paris`, `ĠParis`, `<0x0A>`); its text is the
bytes it stands for (`b" Paris"`, `b" Paris"`, `b"\\n"`). Everything later compares texts. A
vocabulary comes from a `tokenizer.json` here, from a GGUF in `base/vocabulary.py`. Knows nothing of
models or of other vocabularies.

    >>> byte_level_bytes("ĠParis"), metaspace_bytes("▁Paris"), byte_value("<0x0A>")
    (b' Paris', b' Paris', 10)
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import TokenizerError

MAX_TOKENS = 4_000_000
"""More tokens than any vocabulary has: a larger id means a damaged or hostile file."""
MAX_TOKEN_BYTES = 4096

# fmt: off
END_NAMES = (
    "</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|eos|>", "[EOS]", "<EOS_TOKEN>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end\u2581of\u2581sentence|>", "<|im_end|>",
    "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|eom_id|>", "<|eot|>",
    "<|END_OF_TURN_TOKEN|>", "<|endofturn|>", "<|end_of_turn|>", "<end_of_utterance>",
    "<|return|>", "<|call|>", "<EOT>", "_<EOT>", "<|EOT|>",
)
"""Spellings that end a generation; the earliest one present is the tokenizer's main EOS."""
BEGIN_NAMES = (
    "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|bos|>", "[BOS]", "<BOS_TOKEN>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<|begin\u2581of\u2581sentence|>", "[CLS]",
)
"""Spellings that begin a text, the earliest one present first."""
# fmt: on

_UNUSED = re.compile(
    r"<unused_?\d+>|\[unused\d+\]|\[PAD\d+\]|<\|?(?:reserved|unused)_(?:special_)?token_\d+\|?>"
)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Role(IntEnum):
    """What a token is for."""

    NORMAL = 0
    BYTE = 1
    """One raw byte, spelled `<0x0A>`. (A byte-level vocabulary's single bytes are normal.)"""
    BOS = 2
    EOS = 3
    """Every token that ends a generation: end of text, of turn, of message."""
    CONTROL = 4
    """Any other token without text: unknown, padding, the beginning of a turn."""
    UNUSED = 5


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one tokenizer, by id; `assemble` is the easy way to make one."""

    tokens: tuple[bytes, ...]
    """(V,) text of each token; empty for every role but NORMAL and BYTE."""
    roles: NDArray[np.uint8]
    """(V,) uint8, `Role`"""
    names: tuple[str, ...]
    """(V,) spellings as the tokenizer writes them, for people"""
    eos_id: int | None
    bos_id: int | None

    def __post_init__(self) -> None:
        """Raises `TokenizerError` where the parts contradict each other."""
        size = len(self.tokens)
        if not size or self.roles.shape != (size,) or len(self.names) != size:
            raise TokenizerError(f"a vocabulary of {size} tokens is not usable: is the file whole?")
        if (longest := max(map(len, self.tokens))) > MAX_TOKEN_BYTES:
            where = next(i for i, text in enumerate(self.tokens) if len(text) == longest)
            raise TokenizerError(
                f"token {where} has {longest} bytes, "
                f"more than {MAX_TOKEN_BYTES}: is the file damaged?"
            )
        for name, token in (("EOS", self.eos_id), ("BOS", self.bos_id)):
            if token is not None and not 0 <= token < size:
                raise TokenizerError(f"the {name} token {token} is outside the {size} tokens")

    @classmethod
    def assemble(
        cls,
        entries: Iterable[tuple[bytes, Role, str]],
        *,
        eos_id: int | None = None,
        bos_id: int | None = None,
    ) -> Vocabulary:
        """From (text, role, spelling) in the order of ids; the text of a control token is dropped.

        `bos_id` and `eos_id` set those tokens' roles too; one token for both ends counts as EOS.
        """
        tokens, roles, names = [], bytearray(), []
        byte, bos, eos = Role.BYTE, Role.BOS, Role.EOS  # an enum's members are slow to look up
        for i, (text, given, name) in enumerate(entries):
            role = eos if i == eos_id else bos if i == bos_id else given
            tokens.append(text if role <= byte else b"")
            roles.append(role)
            names.append(name)
        array = np.frombuffer(bytes(roles), dtype=np.uint8)
        return cls(tuple(tokens), array, tuple(names), eos_id, bos_id)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over texts, roles, EOS and BOS: what a token map depends on."""
        lengths = np.fromiter(map(len, self.tokens), dtype="<u4", count=len(self.tokens))
        ends = (-1 if i is None else i for i in (self.eos_id, self.bos_id))
        digest = hashlib.sha256(np.fromiter(ends, dtype="<i8", count=2).tobytes())
        digest.update(len(self).to_bytes(8, "little"))
        for part in (lengths.tobytes(), self.roles.tobytes(), b"".join(self.tokens)):
            digest.update(part)
        return digest.hexdigest()


@cache
def _byte_of_char() -> Any:
    """GPT-2's remapping: printable Latin-1 bytes are themselves, the others U+0100 and up.

    A table of `codecs.charmap_encode`, which is ten times faster than a look-up for each character.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable}
    chars |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return codecs.charmap_build("".join(chars[byte] for byte in range(256)))


def byte_level_bytes(spelling: str) -> bytes:
    """The text of a byte-level BPE token: `ĠParis` is `b" Paris"`, `ĉ` a tab.

    A spelling with a character outside the 256 stands for its own UTF-8.
    """
    try:
        return codecs.charmap_encode(spelling, "strict", _byte_of_char())[0]
    except UnicodeEncodeError:
        return plain_bytes(spelling)


def metaspace_bytes(spelling: str, marker: str = "\u2581") -> bytes:
    """The text of a SentencePiece token: U+2581 is a space."""
    return spelling.replace(marker, " ").encode("utf-8", "replace")


def plain_bytes(spelling: str) -> bytes:
    """UTF-8, where a lone surrogate (in a damaged file) becomes a question mark."""
    return spelling.encode("utf-8", "replace")


def byte_value(spelling: str) -> int | None:
    """10 for `<0x0A>`; None for what is no byte token."""
    match = _BYTE.fullmatch(spelling)
    return int(match[1], 16) if match else None


def is_unused_name(spelling: str) -> bool:
    """True for a placeholder that no text uses: `<unused7>`, `<|reserved_special_token_7|>`."""
    return _UNUSED.fullmatch(spelling) is not None


def from_tokenizer_json(source: str | Path | bytes) -> Vocabulary:
    """The vocabulary of a Hugging Face `tokenizer.json` (a path, or the file's bytes).

    BPE (byte-level, SentencePiece style, with an end-of-word suffix), Unigram and WordPiece. Raises
    `TokenizerError` for anything else and for a damaged file.
    """
    where = "the tokenizer.json" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return _read(json.loads(data))
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise TokenizerError(f"{where}: {reason}; give a tokenizer.json") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{where} is not JSON; give a tokenizer.json") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{where} is not a tokenizer.json as the tokenizers library writes it "
            f"({type(error).__name__}: {error}); save it again with that library"
        ) from error
    except TokenizerError as error:
        raise TokenizerError(f"{where}: {error}") from error


def _read(root: dict[str, Any]) -> Vocabulary:
    """The whole file, parsed, as a vocabulary."""
    spellings = _model_spellings(root["model"])
    added = {entry["id"]: entry for entry in root.get("added_tokens") or ()}
    size = 1 + max((*spellings, *added), default=-1)
    if not 0 < size <= MAX_TOKENS or min((*spellings, *added)) < 0:
        raise TokenizerError(f"its token ids run up to {size - 1}, which no vocabulary has")
    names = [spellings.get(i, "") for i in range(size)]
    for i, entry in added.items():
        names[i] = entry["content"]
    control = {i for i, entry in added.items() if entry.get("special")} | _unknown(
        root["model"], names
    )
    bos_id, eos_id, ends = _begin_and_end(root, names, added)
    text = _text_rule(root)
    literal = plain_bytes if _has(root, "ByteLevel", "decoder", "pre_tokenizer") else text
    byte_tokens = bool(root["model"].get("byte_fallback")) or _has(root, "ByteFallback", "decoder")

    normal = Role.NORMAL  # an enum's members are slow to look up

    def entry_of(i: int, name: str) -> tuple[bytes, Role, str]:
        if i in ends:
            return b"", Role.EOS, name
        if is_unused_name(name) or (i not in spellings and i not in added):
            return b"", Role.UNUSED, name
        if i in control:
            return b"", Role.CONTROL, name
        byte = byte_value(name) if byte_tokens else None
        if byte is not None:
            return bytes([byte]), Role.BYTE, name
        return (literal if i in added else text)(name), normal, name

    return Vocabulary.assemble(map(entry_of, range(size), names), eos_id=eos_id, bos_id=bos_id)


def _model_spellings(model: dict[str, Any]) -> dict[int, str]:
    """id -> spelling of the model's own tokens; added tokens may overwrite them later."""
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind == "Unigram":
        return {i: str(piece[0]) for i, piece in enumerate(model["vocab"])}
    if kind not in ("BPE", "WordPiece"):
        raise TokenizerError(
            f"a tokenizer of type {kind} is not supported: BPE, Unigram and WordPiece are"
        )
    vocab: dict[str, int] = model["vocab"]
    spellings = {i: token for token, i in vocab.items()}
    if len(spellings) != len(vocab):
        raise TokenizerError("two tokens have the same id: is the file damaged?")
    return spellings


def _unknown(model: dict[str, Any], names: list[str]) -> set[int]:
    """The token for what the tokenizer cannot spell, as a set of none or one."""
    if model.get("unk_id") is not None:
        return {model["unk_id"]}
    unknown = model.get("unk_token")
    return {names.index(unknown)} if unknown in names else set()


def _begin_and_end(
    root: dict[str, Any], names: list[str], added: dict[int, Any]
) -> tuple[int | None, int | None, set[int]]:
    """BOS, main EOS and every end token: by the post-processor's template and well-known names."""
    first, last = _template_ends(root.get("post_processor"))
    ids = {names[i]: i for i in added}
    if not ids.keys() & {*BEGIN_NAMES, *END_NAMES}:
        ids = {name: i for i, name in enumerate(names)}
    ends = [ids[name] for name in END_NAMES if name in ids]
    begins = [ids[name] for name in BEGIN_NAMES if name in ids]
    bos = first if first is not None else next(iter(begins), None)
    # A template may append what begins a text elsewhere ([SEP]); its word counts before any name.
    eos = last if last is not None else next(iter(ends), None)
    return bos, eos, {*ends, *([] if eos is None else [eos])}


def _template_ends(processor: dict[str, Any] | None) -> tuple[int | None, int | None]:
    """The ids that a post-processor puts before and after a text.

    A template that leaves one text open may still end the second text of a pair.
    """
    first: int | None = None
    last: int | None = None
    for part in steps(processor):
        if part["type"] in ("BertProcessing", "RobertaProcessing"):
            return part["cls"][1], part["sep"][1]
        if part["type"] == "TemplateProcessing":
            begins, ends = _outer_tokens(part, "single")
            if ends is None:
                _, ends = _outer_tokens(part, "pair")
            first = begins if first is None else first
            last = last if ends is None else ends
    return first, last


def _outer_tokens(template: dict[str, Any], form: str) -> tuple[int | None, int | None]:
    """The ids that a template begins and ends with; None where a text stands there."""
    ids = [
        None
        if "Sequence" in piece
        else template["special_tokens"][piece["SpecialToken"]["id"]]["ids"][0]
        for piece in template.get(form) or ()
    ]
    return (ids[0], ids[-1]) if ids else (None, None)


def _text_rule(root: dict[str, Any]) -> Callable[[str], bytes]:
    """How this tokenizer's spellings become text."""
    model = root["model"]
    if _has(root, "ByteLevel", "decoder", "pre_tokenizer"):
        return byte_level_bytes
    if model.get("type") == "WordPiece":
        return _wordpiece_rule(model.get("continuing_subword_prefix") or "##")
    markers = list(dict.fromkeys(_markers(root)))
    suffix = model.get("end_of_word_suffix")

    def rule(spelling: str) -> bytes:
        for marker in markers:
            spelling = spelling.replace(marker, " ")
        if suffix and spelling.endswith(suffix):
            spelling = spelling.removesuffix(suffix) + " "
        return plain_bytes(spelling)

    return rule


def _wordpiece_rule(prefix: str) -> Callable[[str], bytes]:
    """`##ing` goes on; any other token begins a word, which its space makes plain."""

    def rule(spelling: str) -> bytes:
        if spelling.startswith(prefix):
            return plain_bytes(spelling.removeprefix(prefix))
        return plain_bytes(" " + spelling)

    return rule


def _markers(root: dict[str, Any]) -> Iterator[str]:
    """The texts that stand for a space: from Metaspace, or from a pair of Replace steps."""
    for section in ("decoder", "pre_tokenizer", "normalizer"):
        for part in steps(root.get(section)):
            if part["type"] == "Metaspace":
                yield part["replacement"]
            elif part["type"] == "Replace":
                pair = (part["pattern"].get("String"), part["content"])
                marker, space = pair if section == "decoder" else pair[::-1]
                if space == " " and marker:
                    yield marker


def _has(root: dict[str, Any], kind: str, *sections: str) -> bool:
    """Whether one of the sections has a step of this kind."""
    return any(part["type"] == kind for section in sections for part in steps(root.get(section)))


def steps(section: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a tokenizer.json's normalizer, pre-tokenizer, ...; `Sequence` opened up."""
    if section is None:
        return
    if section["type"] != "Sequence":
        yield section
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        for inner in section.get(key) or ():
            yield from steps(inner)
