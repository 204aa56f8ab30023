"""Trains small tokenizers of the two families that GGUF models use.

Both give the same ids in Hugging Face's `tokenizers` and in llama.cpp, which do not merge alike:
llama.cpp's SentencePiece tokenizer joins any two neighbours whose text is a piece, best score
first, while `tokenizers` follows a list of pairs. So the list written here names every split of
every piece into two pieces, in the order of the pieces' scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
BEGIN_OF_TEXT, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"

_SPACE = "\u2581"
# What a piece may be: a word with the space before it, one digit, a run of signs. Angle brackets
# stand alone, so that no two pieces join to the spelling of a control or byte token.
_WORD, _SIGNS = rf"{_SPACE}?\p{{L}}+", rf"{_SPACE}?[^\p{{L}}\p{{N}}\s<>{_SPACE}]+"
_PIECE = Regex(rf"{_WORD}|\p{{N}}|{_SIGNS}|[<>]|{_SPACE}+")


def sentencepiece_style(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A BPE with byte fallback in Llama-2's layout: 3 control tokens, 256 bytes, pieces, letters.

    Newlines and other control characters become byte tokens. Asking for fewer tokens than the
    texts have characters (plus 259) raises ValueError; texts too short for `vocab_size` give a
    smaller vocabulary.
    """
    reserved = (UNKNOWN, BEGIN, END, *BYTE_TOKENS)
    characters, pieces = _train_pieces(texts, vocab_size - len(reserved))
    vocabulary = {token: i for i, token in enumerate((*reserved, *pieces, *characters))}
    model = BPE(
        vocab=vocabulary,
        merges=_every_split(pieces, {*pieces, *characters}),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([_control(name) for name in (UNKNOWN, BEGIN, END)])
    _begin_with(tokenizer, BEGIN)
    return tokenizer


def byte_level(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE in GPT-2's manner: 2 control tokens, 256 bytes, then the merged tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    names = [_control(name) for name in (BEGIN_OF_TEXT, END_OF_TEXT)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    _begin_with(tokenizer, BEGIN_OF_TEXT)
    return tokenizer


def _train_pieces(texts: Iterable[str], count: int) -> tuple[list[str], list[str]]:
    """The texts' characters, and the pieces in the order in which they were made."""
    worker = Tokenizer(BPE())
    worker.normalizer = normalizers.Replace(" ", _SPACE)
    worker.pre_tokenizer = pre_tokenizers.Split(_PIECE, behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=count, show_progress=False)
    worker.train_from_iterator(_printable_lines(texts), trainer=trainer)
    by_id = sorted(worker.get_vocab().items(), key=lambda item: item[1])
    characters = sorted({token for token, _ in by_id if len(token) == 1} | {_SPACE})
    pieces = [token for token, _ in by_id if len(token) > 1]
    if len(characters) > count:
        raise ValueError(
            f"{len(characters)} different characters do not fit {count} free tokens: "
            "ask for a larger vocabulary"
        )
    return characters, pieces[: count - len(characters)]


def _printable_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines as the normalizer leaves them: a space before a text's first word only.

    So the words that open a later line get pieces of their own, without the space. Control
    characters are left out: they are byte tokens.
    """
    for text in texts:
        for number, line in enumerate(text.splitlines()):
            printable = "".join(char for char in line if char.isprintable())
            yield printable if number else " " + printable


def _every_split(pieces: list[str], known: set[str]) -> list[tuple[str, str]]:
    """Every way to make each piece of two others: `abc` from `a`, `bc` and from `ab`, `c`."""
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _control(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def _begin_with(tokenizer: Tokenizer, name: str) -> None:
    """Encoding with special tokens puts `name` first."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A",
        pair=f"{name} $A {name}:1 $B:1",
        special_tokens=[(name, tokenizer.token_to_id(name))],
    )
