"""Prompts that are no conversations: a text, or base tokens, that the base model goes on from.

What the delta is asked depends on how far the text has come:

    written in the adapter's form   "<|user|>\\nWho?\\n<|assistant|>\\nA wo"
        the delta's prompt is the text up to where the answer begins, "A wo" is answer
    any other text                  "Who?"
        the delta's prompt is its own form around the text, which is the question
    any other text, to be read      (`echo`: the text itself is judged)
        the delta's prompt is its form around nothing, and all of the text is answer

Knows bytes, forms and tokens; no model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.alignment import DeltaPrompt
from cmc_local.text.prompts import QUERY, PromptForm
from cmc_local.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class RawPrompt:
    """A prompt as base tokens, and the text that they spell."""

    tokens: tuple[int, ...]
    text: bytes
    """Control tokens by their names (`<|im_start|>` of a form is one), a BOS at the front not."""
    starts: tuple[int, ...]
    """Where each token begins in the text, and the text's length."""
    named: frozenset[int] = frozenset()
    """Numbers of the tokens whose names stand in the text: they spell nothing themselves."""

    @classmethod
    def of(cls, tokens: Sequence[int], vocabulary: Vocabulary, *, added: bytes = b"") -> RawPrompt:
        """The prompt that these tokens spell, less what the tokenizer has `added` in front."""
        pieces = [vocabulary.tokens[token] or vocabulary.names[token].encode() for token in tokens]
        named = frozenset(i for i, token in enumerate(tokens) if not vocabulary.tokens[token])
        if tokens and tokens[0] == vocabulary.bos_id:
            pieces[0] = b""
        first = next((i for i, piece in enumerate(pieces) if piece), 0)
        if added and pieces[first].startswith(added):
            pieces[first] = pieces[first][len(added) :]
        starts = tuple(accumulate(map(len, pieces), initial=0))
        return cls(tuple(tokens), b"".join(pieces), starts, named)

    def first_token(self, offset: int) -> int:
        """The first token that begins at this place of the text or later."""
        return bisect_left(self.starts, offset)

    def said(self, start: int, end: int) -> bytes:
        """The text between two places as deltas hear a reply: of control tokens nothing."""
        return b"".join(
            self.text[max(first, start) : min(last, end)]
            for i, (first, last) in enumerate(pairwise(self.starts))
            if i not in self.named
        )


def answer_offset(form: PromptForm, text: bytes) -> int | None:
    """Where the answer begins in a text written in the form; None in any other text."""
    mark = form.turn.split(QUERY)[1].rstrip(" ").encode()
    at = text.rfind(mark) if mark.strip() else -1
    return None if at < 0 else at + len(mark)


@dataclass(frozen=True)
class SplitPrompt:
    """A raw prompt as one delta sees it: what is asked, then the answer so far."""

    prompt: DeltaPrompt
    answer: int
    """Where in the text the answer begins; the text's end where all of it is to come."""


def split_prompt(adapter: LoadedAdapter, raw: RawPrompt, *, echo: bool) -> SplitPrompt:
    """The prompt as the delta of `adapter` sees it; with `echo` its own text is judged."""
    form, offset = adapter.form, answer_offset(adapter.form, raw.text)
    if offset is not None:
        asked = raw.text[:offset].decode("utf-8", "replace")
        spaces = form.turn[len(form.turn.rstrip(" ")) :]
        return SplitPrompt(adapter.verbatim(asked + spaces), offset)
    if echo:
        return SplitPrompt(adapter.verbatim(form.question("")), 0)
    question = raw.text.decode("utf-8", "replace")
    return SplitPrompt(adapter.prompt([{"role": "user", "content": question}]), len(raw.text))
