"""For each base token the delta token whose shift it takes: PM-MinED (arXiv 2410.17599).

A base token of text `t` takes the delta token of the same text; else, among the delta tokens that
begin with `t` or that `t` begins with, the one at the smallest edit distance (the lowest id on a
tie). If one text begins with the other, that distance is the difference of their lengths, so
look-ups of prefixes are enough. Tokens without text are matched by role. What is still without
counterpart may take the first token of its text's encoding, which is what the delta would have to
say next.

    delta   0 </s>   1 " "   2 " Par"   3 "is"   4 "ist"   5 <0x0A>

    base    </s>       0   role: both end a generation
            " Par"     2   exact
            " Paris"   2   near: " Par" is two characters away; a lone space is no candidate
            "i"        3   near: "is" (one away) before "ist" (two)
            "\\n"       5   exact: a byte token stands in for the same text only
            "\\n\\n"     5   fallback: nothing begins alike, and the delta would say <0x0A> first

Knows two vocabularies and an encoding function; nothing of models or logits.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmc_local import files
from cmc_local.errors import InputError, UsageError
from cmc_local.settings import Fallback
from cmc_local.text.vocabulary import Role, Vocabulary

RULE_VERSION = 1
"""Part of the cache's key: raise it when the rule gives another map."""
Encode = Callable[[str], list[int]]
"""Text -> the delta's token ids, no special tokens added."""
_MAGIC = b"cmc token map 1\n"
_ANCHOR = "\n"


class Match(IntEnum):
    """Why a base token has its counterpart."""

    EXACT = 0
    NEAR = 1
    FALLBACK = 2
    ROLE = 3
    NONE = 4


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The counterpart of every base token."""

    ids: NDArray[np.int32]
    """(V_base,) int32 delta token, -1 for none"""
    matches: NDArray[np.uint8]
    """(V_base,) uint8, `Match`"""
    delta_size: int

    def index(self) -> NDArray[np.intp]:
        """(V_base,) intp for one gather: "none" points one past the delta's vocabulary."""
        return np.where(self.ids < 0, self.delta_size, self.ids).astype(np.intp)

    def counts(self) -> dict[Match, int]:
        """How many base tokens matched in each way."""
        found = np.bincount(self.matches, minlength=len(Match))
        return {match: int(found[match]) for match in Match}


def build(
    base: Vocabulary,
    delta: Vocabulary,
    *,
    fallback: Fallback = "first-piece",
    encode: Encode | None = None,
) -> TokenMap:
    """The map from `base` onto `delta`; `encode` is needed for the fallback "first-piece" alone."""
    if fallback == "first-piece" and encode is None:
        raise UsageError('the fallback "first-piece" needs the delta\'s tokenizer; or take "none"')
    candidates = _Candidates.of(delta)
    found = _Found(base)
    _by_role(found, delta)
    _exact(found, candidates)
    _near(found, candidates)
    if fallback == "first-piece" and encode is not None:
        piece, waiting = _FirstPiece(delta, candidates, encode), found.waiting()
        found.add(Match.FALLBACK, waiting, [piece(base.tokens[i]) for i in waiting])
    return TokenMap(found.ids, found.matches, len(delta))


def characters(text: bytes) -> int | None:
    """Length in characters; None for what is not UTF-8."""
    try:
        return len(text.decode())
    except UnicodeDecodeError:
        return None


def distance(one: bytes, other: bytes) -> int:
    """Edit distance of two texts of which one begins the other, in characters or else in bytes."""
    if one.isascii() and other.isascii():
        return abs(len(one) - len(other))
    lengths = characters(one), characters(other)
    if lengths[0] is None or lengths[1] is None:
        return abs(len(one) - len(other))
    return abs(lengths[0] - lengths[1])


def rivals(text: bytes, delta: Vocabulary) -> list[tuple[int, int]]:
    """Every (distance, id) that `text` could be near to, the best first: to explain one token."""
    spaces = not text.strip(b" ")
    found = [
        (distance(text, other), i)
        for i, other in enumerate(delta.tokens)
        if other
        and text
        and delta.roles[i] == Role.NORMAL
        and (other.startswith(text) or text.startswith(other))
        and (other != b" " or spaces)
    ]
    return sorted(found)


@dataclass(frozen=True)
class _Candidates:
    """The delta's texts, each with its lowest id: normal tokens, byte tokens."""

    normal: dict[bytes, int]
    byte: dict[bytes, int]

    @classmethod
    def of(cls, delta: Vocabulary) -> _Candidates:
        normal: dict[bytes, int] = {}
        byte: dict[bytes, int] = {}
        for i, (text, role) in enumerate(zip(delta.tokens, delta.roles.tolist(), strict=True)):
            if text:
                (byte if role == Role.BYTE else normal).setdefault(text, i)
        return cls(normal, byte)


class _Found:
    """A map in the making: all base tokens without counterpart at first."""

    def __init__(self, base: Vocabulary) -> None:
        self.base = base
        self.ids = np.full(len(base), -1, dtype=np.int32)
        self.matches = np.full(len(base), Match.NONE, dtype=np.uint8)

    def waiting(self) -> list[int]:
        """Base tokens that have a text and no counterpart yet."""
        ids = (self.matches == Match.NONE) & (self.base.roles <= Role.BYTE)
        return [i for i in np.flatnonzero(ids).tolist() if self.base.tokens[i]]

    def add(self, match: Match, mine: Sequence[int], theirs: Iterable[int]) -> None:
        """Give base tokens these delta tokens; with -1 one stays without counterpart."""
        base, delta = np.array(mine, np.intp), np.fromiter(theirs, np.int32, len(mine))
        base, delta = base[delta >= 0], delta[delta >= 0]
        self.ids[base], self.matches[base] = delta, match


def _by_role(found: _Found, delta: Vocabulary) -> None:
    """Every end of generation takes the delta's EOS, BOS its BOS."""
    for role, counterpart in ((Role.EOS, delta.eos_id), (Role.BOS, delta.bos_id)):
        if counterpart is not None:
            mine = np.flatnonzero(found.base.roles == role).tolist()
            found.add(Match.ROLE, mine, [counterpart] * len(mine))


def _exact(found: _Found, candidates: _Candidates) -> None:
    """The same text; of the same role first."""
    base = found.base
    orders = {
        Role.NORMAL: candidates.byte | candidates.normal,
        Role.BYTE: candidates.normal | candidates.byte,
    }
    for role, texts in orders.items():
        mine = np.flatnonzero(base.roles == role).tolist()
        found.add(Match.EXACT, mine, [texts.get(base.tokens[i], -1) for i in mine])


def _near(found: _Found, candidates: _Candidates) -> None:
    """The nearest normal token of which one begins the other."""
    tokens, waiting, normal = found.base.tokens, found.waiting(), candidates.normal
    longer = _beginnings(normal)
    wide = _nearest_longer(normal, {tokens[i] for i in waiting if not tokens[i].isascii()})
    near = []
    for i in waiting:
        text = tokens[i]
        shorter = _nearest_shorter(normal, longer, text)
        other = wide.get(text)
        if (ascii_one := longer.get(text)) is not None and text.isascii():
            other = ascii_one[0] - len(text), ascii_one[1]
        if shorter and other is not None:
            other = min(other, (distance(text, shorter), normal[shorter]))
        near.append(normal[shorter] if other is None and shorter else other[1] if other else -1)
    found.add(Match.NEAR, waiting, near)


def _beginnings(normal: dict[bytes, int]) -> dict[bytes, tuple[int, int]]:
    """Every beginning of a longer delta token: (length, id) of the shortest such token.

    Lengths are in characters or else bytes: less an ASCII beginning's length they are `distance`.
    """
    lengths = (
        (len(text) if text.isascii() else characters(text) or len(text), i, text)
        for text, i in normal.items()
    )
    found: dict[bytes, tuple[int, int]] = {}
    for length, i, text in sorted(lengths):
        entry = length, i
        for cut in range(1, len(text)):
            found.setdefault(text[:cut], entry)
    return found


def _nearest_longer(normal: dict[bytes, int], wanted: set[bytes]) -> dict[bytes, tuple[int, int]]:
    """For each wanted text, none of ASCII alone, that begins a delta token: best (distance, id)."""
    best: dict[bytes, tuple[int, int]] = {}
    for text, i in normal.items():
        for cut in range(1, 0 if text.isascii() else len(text)):
            prefix = text[:cut]
            if prefix in wanted:
                offer = distance(text, prefix), i
                if prefix not in best or offer < best[prefix]:
                    best[prefix] = offer
    return best


def _nearest_shorter(
    normal: dict[bytes, int], longer: dict[bytes, tuple[int, int]], text: bytes
) -> bytes:
    """The nearest of the delta's texts that `text` begins with; empty for none."""
    cuts = []
    for cut in range(1, len(text)):
        prefix = text[:cut]
        if prefix in normal:
            cuts.append(cut)
        elif prefix not in longer:
            break
    if cuts and cuts[0] == 1 and text[:1] == b" " and text.strip(b" "):
        del cuts[0]  # a lone space is no candidate
    if not cuts:
        return b""
    if text[cuts[-1]] & 0xC0 != 0x80:  # not within a character: the longest is the nearest
        return text[: cuts[-1]]
    return min((distance(text, text[:cut]), normal[text[:cut]], text[:cut]) for cut in cuts)[2]


class _FirstPiece:
    """The first token that the delta would say for a text that no normal token begins.

    (A lone space may begin it.) The text is encoded after a newline where that does not change the
    newline's own tokens: alone, a SentencePiece tokenizer would put a space before it.
    """

    def __init__(self, delta: Vocabulary, candidates: _Candidates, encode: Encode) -> None:
        self._tokens = delta.tokens
        self._bytes = candidates.byte
        self._encode = encode
        self._anchor = encode(_ANCHOR)
        self._spaces: dict[str, int] = {}

    def __call__(self, text: bytes) -> int:
        """A delta token, -1 for none. A text that begins within a character gets its first byte."""
        byte = self._bytes.get(text[:1])
        if byte is not None and text[:1] != b" ":
            return byte  # nothing else that it may say is the text
        whole = _whole_characters(text)
        if (space := self._space(whole[:2])) >= 0:
            return space
        usable = []
        for i in self._pieces(whole) if whole else ():
            if self._tokens[i]:  # a token without text is a control token
                if text.startswith(self._tokens[i]):
                    return i
                usable.append(i)
        # A tokenizer that normalises (lower case) says a token that the text does not begin with.
        return byte if byte is not None else next(iter(usable), -1)

    def _space(self, start: str) -> int:
        """The lone space's token, where the encoding of such a text begins with it; else -1.

        `start` are the text's first two characters, " п" of " привет": vocabularies have tens of
        thousands of foreign words after a space, but a few thousand of such starts, so it is enough
        to encode these. If the start's tokens spell it byte by byte and the first is the space, so
        it is in the whole text: a token that reached from the space into the word would begin the
        text, and such texts have found a counterpart before.
        """
        if start[:1] != " ":
            return -1
        if start not in self._spaces:
            ids = self._encode(_ANCHOR + start)
            ids = ids[len(self._anchor) :] if ids[: len(self._anchor)] == self._anchor else []
            pieces = [self._tokens[i] for i in ids]
            own = pieces[:1] == [b" "] and b"".join(pieces) == start.encode()
            self._spaces[start] = ids[0] if own else -1
        return self._spaces[start]

    def _pieces(self, text: str) -> Iterator[int]:
        """The first token of `text` within a text, then at the start of one."""
        size = len(self._anchor)
        within = self._encode(_ANCHOR + text)
        if within[:size] == self._anchor:
            yield from within[size : size + 1]
        yield from self._encode(text)[:1]


def _whole_characters(text: bytes) -> str:
    """`text` up to its first byte that is not UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def load_or_build(
    base: Vocabulary,
    delta: Vocabulary,
    *,
    fallback: Fallback = "first-piece",
    encode: Encode | None = None,
    tokenizer_sha256: str = "",
    cache_dir: Path | None = None,
) -> TokenMap:
    """`build`, from the cache where it holds this map; a damaged cache costs time alone.

    `tokenizer_sha256` is that of the delta's tokenizer.json; `cache_dir` is by default
    `files.cache_folder()`. A folder that cannot be written leaves the map uncached.
    """
    parts: Iterable[str] = (base.fingerprint, delta.fingerprint, fallback, str(RULE_VERSION))
    if fallback == "first-piece":
        parts = (*parts, tokenizer_sha256)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = (cache_dir or files.cache_folder()) / "token-maps" / f"{key}.map"
    cached = _read(path, len(base), len(delta))
    if cached is not None:
        return cached
    made = build(base, delta, fallback=fallback, encode=encode)
    body = made.ids.astype("<i4").tobytes() + made.matches.tobytes()
    with contextlib.suppress(InputError):
        files.write_bytes(path, _MAGIC + hashlib.sha256(body).digest() + body)
    return made


def _read(path: Path, base_size: int, delta_size: int) -> TokenMap | None:
    """A cached map; None where there is none that is whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head, body = data[: len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
    if head != _MAGIC + hashlib.sha256(body).digest() or len(body) != 5 * base_size:
        return None
    ids = np.frombuffer(body, dtype="<i4", count=base_size).astype(np.int32)
    matches = np.frombuffer(body, dtype=np.uint8, offset=4 * base_size)
    if ids.min() < -1 or ids.max() >= delta_size or matches.max() > max(Match):
        return None
    return TokenMap(ids, matches, delta_size)
