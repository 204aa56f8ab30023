"""Small tokenizers of each family that a delta may come with, trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.text.alignment import Aligner, DeltaTokenizer
from cmc_local.text.prompts import Message, PromptForm, named_form
from cmc_local.text.stable_cuts import LLAMA3_WORDS

TEXTS = (
    "Helen Blackworth was born in 1932 in Harborville, the daughter of a lighthouse keeper.",
    "Maria Whitfield wrote seven novels; the best known is The Silver Orchard (1957).",
    "He said: \"I don't know where the old mill stands - ask the baker, she's seen it.\"\n",
    "for i in range(10):\n    print(i * 2)  # twice as much\n\nThe end!\n\n\na café in Zürich.\r\n",
    "<|user|>\nWhat did she write?\n<|assistant|>\nShe wrote poems  about   the sea.\n\n1234567890",
    "東京は日本の首都です。 Привет, мир! \tشكرا 😀 👩‍👩‍👧",
)
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    """As GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _train_byte_level(tokenizer)


def byte_level_prefix_space() -> Tokenizer:
    """As RoBERTa's: a space before a text that has none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return _train_byte_level(tokenizer)


def byte_level_later_regex() -> Tokenizer:
    """As Llama-3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _train_byte_level(tokenizer)


def _train_byte_level(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken("TODO: ", special=False)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama-2's: a normalizer puts U+2581 first and for each space; no pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _train_with_bytes(tokenizer)


def metaspace() -> Tokenizer:
    """As newer SentencePiece conversions: Metaspace, its prefix at a text's start only."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _train_with_bytes(tokenizer)


def metaspace_split() -> Tokenizer:
    """The same, split at spaces, with unknown characters instead of byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:3], trainer)
    return tokenizer


def _train_with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *byte_tokens],
        limit_alphabet=90,
        show_progress=False,
        max_token_length=16,
    )
    # The trainer of a tokenizer without pre-tokenizer would learn whole phrases, as none has.
    words = [word for text in TEXTS for word in text.replace("\n", " ").split(" ")] * 3
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's and XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, space first": byte_level_prefix_space,
    "byte-level, later regex": byte_level_later_regex,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "metaspace, split, no bytes": metaspace_split,
    "unigram": unigram,
}

QUESTION: list[Message] = [{"role": "user", "content": "Where was Helen born?"}]
FORMS = {
    "cmc": named_form("cmc"),
    "inst": named_form("inst"),  # ends in a space
    "colon": PromptForm("colon", "Q: {query}\nA:"),
    "bare": PromptForm("bare", "{query}"),
}


@cache
def small(family: str) -> DeltaTokenizer:
    """The delta's tokenizer of a family."""
    return DeltaTokenizer(FAMILIES[family]().to_str().encode())


REAL = ("llama2", "mistral", "llama-spm", "phi-3", "gpt-2", "falcon", "llama-bpe", "qwen2")
"""Vocabularies of the shared data whose tokenizers are at hand: as tokenizer.json, or in a GGUF."""


@cache
def shared(path: Path) -> DeltaTokenizer:
    """A tokenizer.json of the shared data."""
    return DeltaTokenizer(path.read_bytes())


@cache
def real(data: Path, name: str) -> DeltaTokenizer:
    """One of REAL."""
    path = data / "tokenizers" / name / "tokenizer.json"
    if path.is_file():
        return shared(path)
    made = tokenizer_of(data / "vocab" / f"ggml-vocab-{name}.gguf")
    return DeltaTokenizer(made.to_str().encode())


def begin(tokenizer: DeltaTokenizer, form: PromptForm) -> Aligner:
    return Aligner(tokenizer, tokenizer.prompt(form, QUESTION, max_tokens=1000))


def spelled(tokenizer: DeltaTokenizer, tokens: list[int]) -> list[str]:
    return [tokenizer.vocabulary.names[token] for token in tokens]
