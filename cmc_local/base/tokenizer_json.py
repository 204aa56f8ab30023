"""A GGUF's tokenizer as a tokenizer.json: what a delta needs to share that model's vocabulary.

    byte-level BPE (`gpt2`)       tokens and merges as they are; the pre-tokenizer by its name
    SentencePiece BPE (`llama`)   merges made of the scores: every way to make a token of two
                                  others, the best-scored token first

Which pattern a pre-tokenizer's name stands for is not in the file; some of llama.cpp's
src/llama-vocab.cpp (`llm_tokenizer_bpe`) are known here by name, others are refused. Compare what
comes out with llama.cpp on texts before you trust it: a wrong pattern gives wrong tokens and no
error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from cmc_local.base import gguf_header
from cmc_local.errors import TokenizerError
from cmc_local.text.stable_cuts import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # enum llama_token_type
_MARKER: Final = "\u2581"
_DIGITS: Final = r"\p{N}"
_FALCON: Final = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, r"[0-9][0-9][0-9]")
# fmt: off
_FAMILIES: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    ((GPT2_WORDS,), (
        "gpt-2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "gigachat", "trillion", "a.x-4.0",
        "mellum", "granite-docling", "exaone4", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es",
        "jina-v2-de", "jina-v2-code",
    )),
    ((_DIGITS, GPT2_WORDS), (
        "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
    )),
    ((LLAMA3_WORDS,), (
        "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
        "glm4", "jina-v5-nano", "dbrx", "smaug-bpe", "chatglm-bpe",
    )),
    ((QWEN2_WORDS,), (
        "qwen2", "qwen35", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez", "kormo",
    )),
    (_FALCON, ("falcon",)),
)
# fmt: on
_PATTERNS: Final[Mapping[str, tuple[str, ...]]] = {
    name: patterns for patterns, names in _FAMILIES for name in names
}
_WHOLE_WORDS: Final = frozenset(_FAMILIES[2][1]) - {"dbrx", "smaug-bpe", "chatglm-bpe"}
"""Pre-tokenizers whose models take a word that is a token without merging it."""


def tokenizer_of(gguf: str | Path) -> Tokenizer:
    """The tokenizer of a GGUF file, special tokens included.

    Raises GGUFError for what is no GGUF, TokenizerError for a tokenizer of another kind.
    """
    path = Path(gguf)
    header = gguf_header.read(path, lists=True)
    found = {name.removeprefix("tokenizer.ggml."): one for name, one in header.metadata.items()}
    kind = found.get("model")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(f"{path} has a tokenizer of kind {kind}: only BPE can be written")
    try:
        tokenizer = _byte_level(found, path) if kind == "gpt2" else _sentencepiece(found)
        _add_special(tokenizer, found)
        _name_ends(tokenizer, found, path)
    except KeyError as missing:
        raise TokenizerError(
            f"{path} lacks tokenizer.ggml.{missing.args[0]}: convert the model anew"
        ) from None
    except TokenizerError:
        raise
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise TokenizerError(
            f"{path} holds a damaged tokenizer ({error}): convert the model anew"
        ) from None
    return tokenizer


def _byte_level(found: Mapping[str, Any], path: Path) -> Tokenizer:
    name = found.get("pre", "none")
    if name not in _PATTERNS:
        raise TokenizerError(
            f"{path} names the pre-tokenizer {name}, whose pattern is not known here: take the "
            f"tokenizer.json of the model it was made of; known are {', '.join(sorted(_PATTERNS))}"
        )
    merges = [_halves(merge) for merge in found["merges"]]
    tokenizer = Tokenizer(
        models.BPE(_vocab(found["tokens"]), merges, ignore_merges=name in _WHOLE_WORDS)
    )
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in _PATTERNS[name]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _halves(merge: str) -> tuple[str, str]:
    """The two halves of a merge; a space in the first place is the left half's."""
    rest, _, right = merge[1:].partition(" ")
    return merge[0] + rest, right


def _sentencepiece(found: Mapping[str, Any]) -> Tokenizer:
    tokens, kinds = found["tokens"], found["token_type"]
    unknown = next(
        (name for name, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None
    )
    vocab = _vocab(tokens)
    model = models.BPE(vocab, list(_merges(vocab, found["scores"], kinds)))
    model.unk_token, model.fuse_unk, model.byte_fallback = unknown, True, True
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", _MARKER)]
    if found.get("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_MARKER))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_MARKER, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _merges(
    vocab: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that make a token, in the order in which SentencePiece joins them."""
    normal = [name for name, i in vocab.items() if kinds[i] in (_NORMAL, _USER_DEFINED)]
    for name in sorted(normal, key=lambda name: (-scores[vocab[name]], vocab[name])):
        halves = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
        yield from (pair for pair in halves if pair[0] in vocab and pair[1] in vocab)


def _vocab(tokens: Sequence[str]) -> dict[str, int]:
    """Spelling -> id; a spelling that comes again stands for its first id."""
    vocab: dict[str, int] = {}
    for i, name in enumerate(tokens):
        vocab.setdefault(name, i)
    return vocab


def _add_special(tokenizer: Tokenizer, found: Mapping[str, Any]) -> None:
    pairs = list(zip(found["tokens"], found["token_type"], strict=True))
    special = [name for name, kind in pairs if kind in (_CONTROL, _UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    own = [name for name, kind in pairs if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in own])


def _name_ends(tokenizer: Tokenizer, found: Mapping[str, Any], path: Path) -> None:
    """Say in the post-processor's template which tokens begin and end a text.

    One text is left open, as a model is to go on with it; of a pair each is ended. So nothing but
    BOS is ever added to a prompt, and `text/vocabulary.py` reads off the pair which of several end
    tokens is the main one.
    """
    begin, end = found.get("bos_token_id"), found.get("eos_token_id")
    size = len(found["tokens"])
    for name, token in (("BOS", begin), ("EOS", end)):
        if token is not None and not 0 <= token < size:
            raise TokenizerError(
                f"{path} names the {name} token {token}, outside its {size} tokens: convert the "
                "model anew"
            )
    if not _puts_bos_first(found):
        begin = None
    labels = {"BOS": begin, "EOS": end}
    first = [] if begin is None else ["BOS"]
    last = [] if end is None else ["EOS"]
    if first or last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A"],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=[
                {"id": label, "ids": [token], "tokens": [found["tokens"][token]]}
                for label, token in labels.items()
                if token is not None
            ],
        )


def _puts_bos_first(found: Mapping[str, Any]) -> bool:
    """As the file says, or as llama.cpp does for such a tokenizer where it says nothing."""
    usual = found["model"] == "llama" or found.get("pre") in _WHOLE_WORDS
    return bool(found.get("add_bos_token", usual))
