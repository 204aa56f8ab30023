"""Reads llama.cpp's grammars (GBNF), and patterns of JSON schemas, as far as their shape goes.

    root ::= "ab" | b{2,3}    {"root": Choice(((Literal(1 << 97),), (Repeat(Name("b"), 2, 3),)))}

Of a literal only its first character is kept. What llama.cpp can read is read as it reads it; a
little of what it cannot is read too, as an end of line within a rule. Whatever is read takes time
in proportion to its length. Knows nothing of models.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

DEPTH: Final = 128
"""How deep parentheses may stand in each other: llama.cpp descends them on the machine's stack."""


class Unreadable(ValueError):
    """A text that is no grammar, or no pattern; the message says where and why."""


@dataclass(frozen=True)
class Literal:
    """Characters, one of a set, or a token: something that is not empty."""

    first: int
    """What it may begin with: bit n for ASCII's character n, bit 128 for all others."""


@dataclass(frozen=True)
class Name:
    """A reference to a rule."""

    name: str


@dataclass(frozen=True)
class Repeat:
    """A part so many times in a row; `most` None: without end."""

    part: Part
    least: int
    most: int | None


@dataclass(frozen=True)
class Choice:
    """One of some sequences; each may be empty."""

    options: tuple[tuple[Part, ...], ...]


Part = Literal | Name | Repeat | Choice
_ANY: Final = (1 << 129) - 1
_OTHERS: Final = 1 << 128
EMPTY: Final = Choice(((),))

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*+)*+")
_RULE = re.compile(r"([A-Za-z0-9-]++)[ \t]*+::=")
_NAME = re.compile(r"[A-Za-z0-9-]++")
_LITERAL = re.compile(r'"((?:[^"\\]|\\[\s\S])*+)"')
_SET = re.compile(r"\[(\^?)((?:[^\]\\]|\\[\s\S])*+)\]")
_CHARACTER = re.compile(
    r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\([\s\S])|([^\\])", re.DOTALL
)
_TOKEN = re.compile(r"!?<[^>]*+>")
_COUNTS = re.compile(r"\{\s*+([0-9]++)\s*+(?:(,)\s*+([0-9]++)?\s*+)?\}")


def read_grammar(text: str) -> dict[str, Choice]:
    """The rules by name; of two with the same name the later one. Raises Unreadable."""
    if "\0" in text:
        raise Unreadable("it has a character NUL in it, where llama.cpp stops reading")
    return _Grammar(text).rules()


def read_pattern(text: str) -> Choice:
    """A regular expression. Raises Unreadable."""
    return _Pattern(text).whole()


class _Reader(ABC):
    """What grammars and patterns have in common."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _choice(self, depth: int) -> Choice:
        """Sequences with | between them."""
        if depth > DEPTH:
            raise Unreadable(f"parentheses stand deeper than {DEPTH} in each other")
        options = [self._sequence(depth)]
        while self._next() == "|":
            self._at += 1
            options.append(self._sequence(depth))
        return Choice(tuple(options))

    def _group(self, depth: int) -> Choice:
        """What stands in parentheses; the first has been seen."""
        self._at += 1
        choice = self._choice(depth + 1)
        if self._next() != ")":
            raise self._unreadable("a parenthesis is not closed")
        self._at += 1
        return choice

    def _sequence(self, depth: int) -> tuple[Part, ...]:
        parts: list[Part] = []
        while True:
            self._skip()
            if (repeated := self._repetition()) is not None:
                if not parts:
                    raise self._unreadable("there is nothing to repeat")
                if isinstance(parts[-1], Repeat) and isinstance(parts[-1].part, Repeat):
                    raise self._unreadable("a part is repeated three times over")
                parts[-1] = Repeat(parts[-1], *repeated)
            elif (part := self._part(depth)) is not None:
                parts.append(part)
            else:
                return tuple(parts)

    def _repetition(self) -> tuple[int, int | None] | None:
        """The least and the most times."""
        known: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if (found := known.get(self._next())) is not None:
            self._at += 1
            return found
        if self._next() != "{":
            return None
        match = self._take(_COUNTS)
        if match is None or any(count and len(count) > 9 for count in match.groups()):
            raise self._unreadable("write a repetition as {2}, {2,} or {2,3}")
        least = int(match[1])
        most = least if match[2] is None else None if match[3] is None else int(match[3])
        if most is not None and most < least:
            raise self._unreadable(f"{match[0]} repeats at least {least} and at most {most} times")
        return least, most

    @abstractmethod
    def _skip(self) -> None:
        """Pass what means nothing."""

    @abstractmethod
    def _part(self, depth: int) -> Part | None:
        """The next part; None where a sequence ends."""

    def _unreadable(self, why: str) -> Unreadable:
        line = self._text.count("\n", 0, self._at) + 1
        here = self._text[self._at : self._at + 20].partition("\n")[0]
        return Unreadable(f"line {line}, at {here!r}: {why}" if here else f"line {line}: {why}")


class _Grammar(_Reader):
    def rules(self) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        self._skip()
        while self._at < len(self._text):
            match = self._take(_RULE)
            if match is None:
                raise self._unreadable("a rule begins with its name and ::=")
            found[match[1]] = self._choice(0)
        return found

    def _skip(self) -> None:
        self._take(_SPACE)

    def _part(self, depth: int) -> Part | None:
        begins = self._next()
        if begins in ("", "|", ")") or _RULE.match(self._text, self._at):
            return None
        if begins == "(":
            return self._group(depth)
        if begins == ".":
            self._at += 1
            return Literal(_ANY)
        if (match := self._take(_LITERAL)) is not None:
            return Literal(_bits(_first(match[1]))) if match[1] else EMPTY
        if (match := self._take(_SET)) is not None:
            return _set(match)
        if self._take(_TOKEN) is not None:
            return Literal(_ANY)
        if (match := self._take(_NAME)) is not None:
            return Name(match[0])
        raise self._unreadable("no part of a rule begins so")


class _Pattern(_Reader):
    def whole(self) -> Choice:
        choice = self._choice(0)
        if self._at < len(self._text):
            raise self._unreadable("a parenthesis was not opened")
        return choice

    def _skip(self) -> None:
        """Nothing: in a pattern white space is meant."""

    def _part(self, depth: int) -> Part | None:
        begins = self._next()
        if begins in ("", "|", ")"):
            return None
        if begins == "(":
            return self._group(depth)
        if begins == "[":
            if (match := self._take(_SET)) is None:
                raise self._unreadable("a set of characters is not closed")
            return _set(match)
        match = self._take(_CHARACTER)
        if match is None:
            raise self._unreadable("a pattern does not end in a backslash")
        if begins in "^$":
            return EMPTY
        named = match[4] is not None and match[4].isalpha()  # \d and its like
        return Literal(_ANY if named or begins == "." else _bits(_code(match)))


def _set(match: re.Match[str]) -> Part:
    """A set of characters; one with a range that ends before it begins has none, as it reads."""
    codes = [(_code(one), one[0]) for one in _CHARACTER.finditer(match[2])]
    found, at = 0, 0
    while at < len(codes):
        low = high = codes[at][0]
        if at + 2 < len(codes) and codes[at + 1][1] == "-":
            high, at = codes[at + 2][0], at + 2
        found |= _bits(low, high)
        at += 1
    if not match[2]:
        return EMPTY
    return Literal((_ANY & ~found) | _OTHERS if match[1] else found)


def _first(text: str) -> int:
    match = _CHARACTER.match(text)
    return 0 if match is None else _code(match)


def _code(match: re.Match[str]) -> int:
    """The character that one of `_CHARACTER` means; unknown escapes mean what they show."""
    if (digits := match[1] or match[2] or match[3]) is not None:
        return int(digits, 16)
    if match[4] is not None:
        return ord({"n": "\n", "r": "\r", "t": "\t"}.get(match[4], match[4]))
    return ord(match[5])


def _bits(low: int, high: int | None = None) -> int:
    """The bits of the characters from one to another."""
    high = low if high is None else high
    ascii_ones = ((1 << (min(high, 127) + 1)) - 1) & ~((1 << low) - 1) if low < 128 else 0
    return ascii_ones | (_OTHERS if high >= 128 else 0)
