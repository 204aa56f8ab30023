"""PM-MinED written down a second time, slowly: two loops and a whole edit-distance table.

Shares nothing with `cmc_local.text.token_map` but the vocabularies and the names of the matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cmc_local.text.token_map import Match
from cmc_local.text.vocabulary import Role, Vocabulary

Encode = Callable[[str], list[int]]


def slow_map(
    base: Vocabulary, delta: Vocabulary, encode: Encode | None = None
) -> list[tuple[int, Match]]:
    """(delta id or -1, match) of each base token; `encode` switches the fallback on."""
    return [slow_match(i, base, delta, encode) for i in range(len(base))]


def slow_match(
    i: int, base: Vocabulary, delta: Vocabulary, encode: Encode | None
) -> tuple[int, Match]:
    """The counterpart of one base token."""
    role, text = base.roles[i], base.tokens[i]
    if role in (Role.EOS, Role.BOS):
        end = delta.eos_id if role == Role.EOS else delta.bos_id
        return (-1, Match.NONE) if end is None else (end, Match.ROLE)
    if role in (Role.CONTROL, Role.UNUSED) or not text:
        return -1, Match.NONE

    same, near = [], []
    for d, other in enumerate(delta.tokens):
        if other == text:
            same.append((delta.roles[d] != role, d))
        elif is_rival(text, other, Role(delta.roles[d])):
            near.append((edit_distance(*units(text, other)), d))
    if same:
        return min(same)[1], Match.EXACT
    if near:
        return min(near)[1], Match.NEAR
    first = first_piece(text, delta, encode) if encode else -1
    return first, Match.NONE if first < 0 else Match.FALLBACK


def is_rival(text: bytes, other: bytes, role: Role) -> bool:
    """Whether `other` may stand for the unequal `text`."""
    if role != Role.NORMAL or not other:
        return False
    if other == b" " and set(text) != {0x20}:
        return False
    return text.startswith(other) or other.startswith(text)


def units(*texts: bytes) -> list[Sequence[object]]:
    """The texts as characters if all are UTF-8, otherwise as bytes."""
    try:
        return [text.decode() for text in texts]
    except UnicodeDecodeError:
        return list(texts)


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein's distance by the whole table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def first_piece(text: bytes, delta: Vocabulary, encode: Encode) -> int:
    """What the delta would say first for `text`: after a newline, else at the start of a text."""
    whole = text  # up to the last whole character
    while units(whole) == [whole]:
        whole = whole[:-1]
    usable = []
    if whole:
        newline, both, alone = encode("\n"), encode("\n" + whole.decode()), encode(whole.decode())
        if both[: len(newline)] == newline and len(both) > len(newline):
            usable.append(both[len(newline)])
        usable += alone[:1]
    usable = [d for d in usable if delta.roles[d] in (Role.NORMAL, Role.BYTE) and delta.tokens[d]]
    said = [d for d in usable if text.startswith(delta.tokens[d])]
    byte = [
        d
        for d, other in enumerate(delta.tokens)
        if delta.roles[d] == Role.BYTE and other == text[:1]
    ]
    return (said + byte + usable + [-1])[0]
