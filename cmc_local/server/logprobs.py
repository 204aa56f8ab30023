"""Log-probabilities in the shapes of OpenAI's two interfaces.

    chat          {"content": [{"token": " a", "logprob": -0.1, "bytes": [32, 97],
                                "top_logprobs": [{"token": ...}]}], "refusal": null}
    completions   {"tokens": [" a"], "token_logprobs": [-0.1], "top_logprobs": [{" a": -0.1}],
                   "text_offset": [0]}

A token that has no text of its own (an end of text) is shown by its name. Bytes that are no whole
characters are `bytes:\\xe2\\x82` in completions, as OpenAI writes them.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cmc_local.engine.logprobs import Ranked, TokenDetail
from cmc_local.text.vocabulary import Vocabulary

NEVER: Final = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def chat_content(
    details: Iterable[TokenDetail], vocabulary: Vocabulary, *, plain: bool
) -> list[dict[str, Any]]:
    """The entries of `logprobs.content`; with `plain` each says what the base alone would."""
    entries = []
    for one in details:
        entry = _entry(one.token, one.logprob, vocabulary)
        entry["top_logprobs"] = _entries(one.top, vocabulary)
        if plain:
            entry["cmc"] = {
                "logprob": _finite(one.plain_logprob),
                "top_logprobs": _entries(one.plain_top, vocabulary),
            }
        entries.append(entry)
    return entries


class TextLogprobs:
    """One completion's tokens, piece by piece; knows how far its text has come."""

    def __init__(self, vocabulary: Vocabulary, alternatives: int, offset: int = 0) -> None:
        """`offset` characters stand before the first token; -1: its first is not in the text."""
        self._vocabulary = vocabulary
        self._alternatives = alternatives
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def piece(self, details: Sequence[TokenDetail]) -> dict[str, list[Any]]:
        """The next tokens."""
        return {
            "tokens": [completion_token(one.token, self._vocabulary) for one in details],
            "token_logprobs": [_finite(one.logprob) for one in details],
            "top_logprobs": [self._top(one) for one in details],
            "text_offset": [self._pass(one.token) for one in details],
        }

    def _top(self, detail: TokenDetail) -> dict[str, float] | None:
        """Alternatives by their text; of two with the same text the likelier one."""
        if detail.logprob is None or not self._alternatives:
            return None
        found: dict[str, float] = {}
        for token, logprob in detail.top:
            text = completion_token(token, self._vocabulary)
            found.setdefault(text, max(logprob, NEVER))
        return found

    def _pass(self, token: int) -> int:
        """Where a token begins; a character counts once it is whole."""
        begins = max(self._offset, 0)
        self._offset += len(self._decoder.decode(self._vocabulary.tokens[token]))
        return begins


def joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The pieces of one completion as one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [one for part in parts for one in part[name]] for name in names}


def chat_token(token: int, vocabulary: Vocabulary) -> str:
    """A token's text, or its name."""
    text = vocabulary.tokens[token]
    return text.decode("utf-8", "replace") if text else vocabulary.names[token]


def completion_token(token: int, vocabulary: Vocabulary) -> str:
    """A token's text, or its name, or its bytes where they are no text."""
    text = vocabulary.tokens[token]
    try:
        return text.decode() if text else vocabulary.names[token]
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def _entries(ranked: Ranked, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [_entry(token, logprob, vocabulary) for token, logprob in ranked]


def _entry(token: int, logprob: float | None, vocabulary: Vocabulary) -> dict[str, Any]:
    text = vocabulary.tokens[token]
    return {
        "token": chat_token(token, vocabulary),
        "logprob": _finite(logprob),
        "bytes": list(text) if text else None,
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, NEVER)
