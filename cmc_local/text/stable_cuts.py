"""Where a text can be cut so that nothing that follows changes the tokens before the cut.

Three rules, each for the tokenizers that it is proved for; elsewhere a text has fewer borders:

    the sea| is| blue   before a space or newline, where no token of the vocabulary holds it right
                        after the character before it: no merge crosses the place
    the sea|, 1932      where letters or digits end, if the pre-tokenizer is known to cut there
    aaaaaaaa|aaa        anywhere, if merges alone make the tokens: found by trying
                        (`last_certain_end`)

The first two look at two characters, the third at the last tokens of a long tail. Such a place is
called a border here. Knows spellings and what a tokenizer.json says of itself; encodes nothing on
its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple
from unicodedata import category, ucd_3_2_0

from cmc_local.text.vocabulary import Role, Vocabulary, steps

LONER: Final = "\0"
"""The anchor of text that is cut within a word: no merge joins it with what follows."""
_MARKER: Final = "\u2581"
_LONG: Final = 4
"""A tail of this many times the longest token is searched by the third rule."""
_CACHE: Final = 4096
"""For so many pairs of characters it is remembered whether they make a border."""
GPT2_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|<digits>"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS: Final = _LATER.replace("<digits>", r"\p{N}{1,3}")
QWEN2_WORDS: Final = _LATER.replace("<digits>", r"\p{N}")
_WORD_PATTERNS: Final = (GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS)
"""Pre-tokenizers' patterns that cut wherever letters or digits end."""


class Tail(NamedTuple):
    """The end of a text: what comes after its last border, whose tokens may still change."""

    anchor: str
    """One character to encode `text` after, so that its tokens are those that it has within the
    whole text; empty where `text` is the whole."""
    text: str
    seen: int = 0
    """So many of its characters were searched for a border before, in vain."""


class StableCuts:
    """Where texts can be cut for one tokenizer."""

    def __init__(self, data: bytes, vocabulary: Vocabulary, normalizer: Any) -> None:
        """From a tokenizer.json's bytes, and the tokenizers library's normalizer for it or None."""
        root = json.loads(data)
        # Unigram adds up scores over a whole piece of text and tells equal sums apart by rounding:
        # only where its pre-tokenizer cuts, before spaces, is what follows on its own.
        self._signs = " " if root["model"].get("type") == "Unigram" else " \n"
        self._vocabulary = vocabulary
        self._normalizer = normalizer
        self._crossing = _crossing_bytes(vocabulary)
        self._cuts_words = _cuts_words(root)
        self._merges_alone = _merges_alone(root, vocabulary)
        added = [e["content"] for e in root.get("added_tokens") or () if not e.get("special")]
        self._added = {*added, *map(self._normal, added)} - {""}
        self._is_border: Callable[[str, str], bool] = lru_cache(_CACHE)(self._check)

    def places(
        self, tail: Tail, least: int, encode: Callable[[str], list[int]]
    ) -> Iterator[tuple[int, str]]:
        """Places to cut a tail at, in characters, and the anchor of what comes after; last first.

        None is before `least`. `encode` gives the tokens of a text that stands where the tail's
        does, after the same anchor.
        """
        for place in self._between_two(tail, least):
            yield place, tail.text[place - 1]
        if self._merges_alone and self._has_doubled(tail):
            place = last_certain_end(tail.text, self._reach, self._widths, encode)
            if place >= least:
                yield place, LONER

    def _between_two(self, tail: Tail, least: int) -> Iterator[int]:
        """The last two places between characters that make a border."""
        text, found = tail.text, 0
        for place in range(len(text) - 1, max(least, tail.seen) - 1, -1):
            likely = self._cuts_words or text[place] in self._signs
            if likely and self._is_border(text[place - 1], text[place]):
                yield place
                found += 1
                if found == 2:
                    return

    def _check(self, before: str, after: str) -> bool:
        """Whether tokens always end between these two characters."""
        if category(before)[0] == "M":  # a normalizer may join it with what stands before it
            return False
        normal = self._normal(before)[-1:]
        if not normal or any(normal + after in t or t.endswith(normal) for t in self._added):
            return False
        if after not in self._signs:
            # Letters and digits of their own, which no normalizer joins with what follows.
            alone = self._normal(before + after) == before + after
            return self._cuts_words and alone and _ends_word(before, after)
        # No token holds both in this order, so no merge crosses the place; and a pre-tokenizer
        # that splits before spaces does so here, for this is the first of them.
        is_space = normal.isspace() or normal == _MARKER
        return not is_space and normal.encode()[-1] not in self._crossing[after]

    def _normal(self, text: str) -> str:
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def _has_doubled(self, tail: Tail) -> bool:
        """Whether a tail is long, and twice as long as when it was last searched.

        The search encodes it some dozen times, so it is not done again for each token.
        """
        long = _LONG * self._reach
        return (len(tail.text) // long).bit_length() > (tail.seen // long).bit_length()

    @cached_property
    def _widths(self) -> list[int]:
        """(V,) characters of each token; of a character's byte tokens the first alone counts."""
        v = self._vocabulary
        return [
            (token[0] & 0xC0 != 0x80) if role == Role.BYTE else len(name)
            for token, role, name in zip(v.tokens, v.roles.tolist(), v.names, strict=True)
        ]

    @cached_property
    def _reach(self) -> int:
        """The longest token's length in characters."""
        return max(self._widths)


def last_certain_end(
    text: str, reach: int, widths: Sequence[int], encode: Callable[[str], list[int]]
) -> int:
    """The last place in `text` where a token ends whatever follows the text; 0 for none.

    For tokenizers whose tokens are made by merges alone. `reach` is the longest token's length in
    characters, `widths` are the lengths of all tokens.

    Whatever follows, one of the text's last `reach` places is the end of a token, as no token is
    longer. Which of them is not known yet. But where a token ends, the tokens before it are those
    of the text up to there, since no merge goes across. So each of these places is tried, and a
    token's end that all the trials have in common is certain:

        tokens `aaaa`, `aa`, `a`, so the reach is 4; the text is "aaaaaaaaaa"

        if a token ends at 10, the tokens are aaaa aaaa aa, and end at 4, 8, 10
                            9                 aaaa aaaa a              4, 8, 9
                            8                 aaaa aaaa                4, 8
                            7                 aaaa aa a                4, 6, 7

        4 is in each line: the first `aaaa` is final
    """
    shared = set(range(1, len(text)))
    for end in range(max(len(text) - reach, 0) + 1, len(text) + 1):
        place, ends = end, {end}
        for token in reversed(encode(text[:end])):
            place -= widths[token]
            ends.add(place)
        shared &= ends
    return max(shared, default=0)


def _ends_word(before: str, after: str) -> bool:
    """Whether letters or digits end between two characters, and something else begins.

    By the classes that each has had in every Unicode since 3.2, so the tokenizer's tables agree.
    """
    classes = [category(c)[0] for c in (before, after) if category(c) == ucd_3_2_0.category(c)]
    return classes in (["L", "N"], ["N", "L"], ["L", "P"], ["N", "P"], ["L", "S"], ["N", "S"])


def _crossing_bytes(vocabulary: Vocabulary) -> dict[str, frozenset[int]]:
    """For a space and a newline: the bytes that come directly before it inside some token."""
    found: dict[str, set[int]] = {" ": set(), "\n": set()}
    for border, bytes_before in found.items():
        code = border.encode()
        for token in vocabulary.tokens:
            place = token.find(code, 1)
            while place > 0:
                bytes_before.add(token[place - 1])
                place = token.find(code, place + 1)
    return {border: frozenset(codes) for border, codes in found.items()}


def _cuts_words(root: dict[str, Any]) -> bool:
    """Whether the pre-tokenizer is known to cut wherever letters or digits end."""
    if not all(step["type"] in ("NFC", "NFKC") for step in steps(root.get("normalizer"))):
        return False
    cutting = False
    for step in steps(root.get("pre_tokenizer")):
        if step["type"] == "Split":
            isolated = step["behavior"] == "Isolated" and not step["invert"]
            if not isolated or step["pattern"].get("Regex") not in _WORD_PATTERNS:
                return False
            cutting = True
        elif step["type"] == "ByteLevel":
            if not cutting and not step.get("use_regex", True):
                return False  # what cuts after it sees bytes, not letters
            cutting = True
        elif step["type"] != "Digits":
            return False
    return cutting


def _merges_alone(root: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether tokens are made by merges alone, of characters or of a rare character's bytes."""
    model = root["model"]
    unusual = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if not model.get("byte_fallback") or any(model.get(name) for name in unusual):
        return False
    for step in (*steps(root.get("normalizer")), *steps(root.get("pre_tokenizer"))):
        if step["type"] == "Replace":
            if len(step["pattern"].get("String", "")) != 1 or len(step["content"]) != 1:
                return False
        elif step["type"] not in ("Prepend", "Metaspace"):
            return False
    named = list(zip(vocabulary.names, vocabulary.roles.tolist(), strict=True))
    every_byte = sum(role == Role.BYTE for _, role in named) == 256
    plain = not any(LONER in name or "<0x" in name for name, role in named if role != Role.BYTE)
    return every_byte and plain and all(e.get("special") for e in root.get("added_tokens") or ())
