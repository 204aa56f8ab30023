"""Shifted logits by the letter of docs/design.md, all of it anew at every step.

    logits = base + sum over adapters of alpha * map(delta)

The delta is given the encoding of its whole prompt and the response so far; the map comes from two
loops; what a base token is offered in the middle of a delta token is looked for in two more.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cmc_local.text.vocabulary import Role, Vocabulary
from reference.llama import Llama
from slow_token_map import slow_map

LONGEST_JOIN = 4
"""A word that the delta may have begun in so many tokens."""
SPACES = " \n"


@dataclass(frozen=True)
class Stream:
    """What the delta has seen."""

    tokens: list[int]
    closed: int
    """So many of the tokens belong to the prompt, whatever the response."""
    held: bytes
    """The response's last bytes, which are no whole character yet; the delta has not seen them."""


@dataclass(eq=False)
class SlowDelta:
    """A delta with its tokenizer and prompt form."""

    model: Llama
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    turn: str
    """One question up to where the answer begins; holds `{query}`."""
    _rows: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def stream(self, question: str, response: bytes) -> Stream:
        """The encoding of prompt and response together."""
        prompt = self.turn.replace("{query}", question)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        whole = self.tokenizer.encode(
            prompt + decoder.decode(response).lstrip(" "), add_special_tokens=False
        )
        border = len(prompt.rstrip(SPACES))
        head = [] if self.vocabulary.bos_id is None else [self.vocabulary.bos_id]
        closed = sum(end <= border for _, end in whole.offsets)
        return Stream([*head, *whole.ids], len(head) + closed, decoder.getstate()[0])

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """(n, V_delta): the logits after the last tokens, the newest last."""
        key = tuple(tokens)
        if key not in self._rows:  # bases of one vocabulary ask the same
            self._rows[key] = self.model.logits(tokens, last=LONGEST_JOIN + 1)
        return self._rows[key]


@dataclass(eq=False)
class SlowSteering:
    """A delta carried over to a base vocabulary."""

    delta: SlowDelta
    base: Vocabulary
    alpha: float
    neutral: bool = True
    first_piece: bool = True
    join: bool = True
    _within: dict[bytes, list[tuple[int, list[int]]]] = field(default_factory=dict)

    @cached_property
    def map(self) -> list[int]:
        """The delta token of each base token, -1 for none."""
        encode = self.delta.encode if self.first_piece else None
        return [found for found, _ in slow_map(self.base, self.delta.vocabulary, encode)]

    def added(self, base_row: NDArray[np.float64], question: str, response: bytes) -> list[float]:
        """What is added to each base logit after `response`."""
        stream = self.delta.stream(question, response)
        rows = self.delta.rows(stream.tokens)
        shift: list[float | None] = []
        for d in self.map:
            shift.append(float(rows[-1][d]) if d >= 0 else None)
        scaled = [None if value is None else self.alpha * value for value in shift]
        offers = self._offers(stream, rows) if self.join else []
        away = {b for _, b, _ in offers}
        sure = [None if b in away else value for b, value in enumerate(scaled)]
        mean = self._fill(base_row, sure)
        fill = mean if self.neutral else 0.0
        found = [fill if value is None else value for value in scaled]
        larger = max if self.alpha > 0 else min
        for k, b, offer in offers:
            found[b] = larger(found[b], self.alpha * offer + k * mean)
        return found

    def _offers(self, stream: Stream, rows: NDArray[np.float64]) -> list[tuple[int, int, float]]:
        """Mid-token shifts: (k, base token, what it is offered less k fills).

        Bytes that are held back belong to the word that was begun.
        """
        found: list[tuple[int, int, float]] = []
        open_tokens = stream.tokens[stream.closed :]
        for k in range(min(LONGEST_JOIN, len(open_tokens)) + 1):
            last = open_tokens[len(open_tokens) - k :]
            begun = b"".join(self.delta.vocabulary.tokens[t] for t in last) + stream.held
            if b"\n" in begun[1:] or b" " in begun.lstrip(b" "):
                break  # more than one word
            before = rows[len(rows) - 1 - k :]  # before[j]: what token j of `last` was chosen from
            way = sum(float(before[j][t]) for j, t in enumerate(last))
            for d, takers in self._longer(begun):
                found += [(k, b, float(before[0][d]) - way) for b in takers]
        return found

    def _longer(self, begun: bytes) -> list[tuple[int, list[int]]]:
        """Delta tokens that go on after `begun`, each with the base tokens that go along."""
        if begun not in self._within:
            found = []
            for d, text in enumerate(self.delta.vocabulary.tokens):
                if begun and text.startswith(begun) and len(text) > len(begun):
                    rest = text[len(begun) :]
                    found.append((d, [b for b, t in self._takers if rest.startswith(t)]))
            self._within[begun] = found
        return self._within[begun]

    @cached_property
    def _takers(self) -> list[tuple[int, bytes]]:
        """Base tokens with a text; byte tokens only where no other token has theirs."""
        roles, tokens = self.base.roles, self.base.tokens
        said = {t for b, t in enumerate(tokens) if roles[b] != Role.BYTE}
        return [
            (b, t) for b, t in enumerate(tokens) if t and not (roles[b] == Role.BYTE and t in said)
        ]

    @staticmethod
    def _fill(base_row: NDArray[np.float64], scaled: list[float | None]) -> float:
        """What keeps the unmapped tokens' total probability as the base had it."""
        top = float(base_row.max())
        after = before = 0.0
        for value, add in zip(base_row, scaled, strict=True):
            if add is not None:
                after += math.exp(value + add - top)
                before += math.exp(value - top)
        return math.log(after) - math.log(before) if before else 0.0


def shifted(
    base_row: NDArray[np.float64],
    steerings: Sequence[SlowSteering],
    question: str,
    response: bytes,
) -> NDArray[np.float64]:
    """(V_base,) float64: the base's logits after `response` with every adapter's shift."""
    total = base_row.copy()
    for one in steerings:
        total += one.added(base_row, question, response)
    return total
