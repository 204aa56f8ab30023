"""Response bytes -> the delta's tokens, in step with the text that the base model produces.

The delta's stream is the canonical encoding of prompt and response together. After each base token
only the *tail* is encoded again: the text from the last place that no later text can change. What
differs from the stream before is an `Edit`: keep so many tokens, then feed these.

    prompt `Who?\\n`, pushed b"Par": keep 3, feed `Par`;  then b"is": keep 3, feed `Paris`

Knows neither the base model nor ONNX: bytes in, token ids out.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from cmc_local.text.delta_tokenizer import DeltaPrompt, DeltaTokenizer
from cmc_local.text.stable_cuts import Tail

__all__ = ["Aligner", "DeltaPrompt", "DeltaTokenizer", "Edit", "common_prefix", "edit_between"]


class Edit(NamedTuple):
    """How one stream of tokens becomes the next one.

    An edit that changes the stream feeds at least one token, so that the delta has a shift for the
    new last position; one that changes nothing keeps all and feeds none.
    """

    keep: int
    """This many tokens of the whole stream stay, prompt included."""
    feed: tuple[int, ...]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length, shorter = 0, min(len(first), len(second))
    while length < shorter and first[length] == second[length]:
        length += 1
    return length


def edit_between(old: Sequence[int], new: Sequence[int]) -> Edit:
    """The edit that makes one stream of another."""
    keep = common_prefix(old, new)
    if 0 < keep == len(new) < len(old):
        keep -= 1
    return Edit(keep, tuple(new[keep:]))


class _Mark(NamedTuple):
    """A border: a place in the response such that no later text changes the tokens before it.

    `rollback` goes back to the last border that is left and reads on from there.
    """

    at: int
    """Where it lies: so many bytes of the response come before it."""
    found_at: int
    """How long the response was, in bytes, when it was found. What comes right after a place tells
    whether it is a border, so a response cut to fewer bytes may have none there."""
    final: int
    """How many tokens of the stream come before it, the prompt's included."""
    anchor: str
    """The character before it, or what stands for one: the `Tail.anchor` of what follows."""


class Aligner:
    """The delta's stream of tokens for one response that is being written."""

    def __init__(self, tokenizer: DeltaTokenizer, prompt: DeltaPrompt) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        pending = tokenizer.encode_tail(Tail(prompt.anchor, prompt.pending))
        self._prompt_tokens = [*prompt.tokens, *pending]
        self.tokens: list[int] = []
        """The stream now: prompt, then response."""
        self._response = bytearray()
        self._marks: list[_Mark] = []
        self._final = 0
        """How many of the tokens no later text can change."""
        self._floor = 0
        """How many of the tokens `recent` must not show."""
        self._tail = Tail("", "")
        """The text of the tokens that are not final."""
        self._prompts_part = 0
        """How many characters of the tail are the prompt's."""
        self._answering = False
        """Whether the response has begun: its leading spaces are behind."""
        self._decoder = _decoder()
        self._restart()

    def push(self, data: bytes) -> Edit:
        """Append bytes of the response (a base token's; they may end inside a character).

        Spaces before the response's first other character are dropped, bytes of a character that
        is not whole yet are held back, bytes that are not UTF-8 become U+FFFD.
        """
        self._response += data
        return self._read(data)

    def rollback(self, n_bytes: int) -> Edit:
        """Take back the last `n_bytes` that were pushed; raises ValueError if there are fewer."""
        if not 0 <= n_bytes <= len(self._response):
            raise ValueError(f"cannot take back {n_bytes} of {len(self._response)} bytes")
        before = list(self.tokens)
        del self._response[len(self._response) - n_bytes :]
        while self._marks and self._marks[-1].found_at > len(self._response):
            self._marks.pop()
        if self._marks:
            self._return_to(self._marks[-1])
        else:
            self._restart()
        return edit_between(before, self.tokens)

    def shorten(self, max_tokens: int) -> Edit:
        """Make room in a full context: keep the prompt and the newest half of the response.

        At most `max_tokens` remain, the prompt's included. The delta's cache knows positions, so
        all that moves is fed again.
        """
        start, before = len(self._prompt_tokens), list(self.tokens)
        kept = min((len(before) - start) // 2, max_tokens - start)
        if kept <= 0:
            return Edit(len(before), ())
        if len(before) - kept > self._final:  # the cut is in the open tail: keep it as it stands
            self._freeze()
        self.tokens[:] = self._prompt_tokens + before[-kept:]
        self._final += len(self.tokens) - len(before)
        self._floor = start
        self._marks = [self._marks[-1]._replace(final=self._final)]
        return edit_between(before, self.tokens)

    @property
    def held(self) -> bytes:
        """Bytes of a character that is not whole yet; the stream is this much behind the text."""
        return self._decoder.getstate()[0]

    @property
    def tail_length(self) -> int:
        """Characters that the next push encodes again."""
        return len(self._tail.text)

    def recent(self, count: int) -> tuple[int, ...]:
        """At most `count` last tokens of the stream, none that was final before the response.

        A prompt's pending space may be part of the response's first token, so it is among them.
        """
        return tuple(self.tokens[max(len(self.tokens) - count, self._floor) :])

    def _read(self, data: bytes) -> Edit:
        """Bring the stream up to date with the response's next bytes."""
        text = self._decoder.decode(data)
        if not self._answering:
            text = text.lstrip(" ")
        if not text:
            return Edit(len(self.tokens), ())
        self._answering = True
        return self._extend(text)

    def _extend(self, text: str) -> Edit:
        """Encode the tail again with `text` after it. If a border shows, the tail begins there.

        Final tokens, then those of the tail, as "lo", " w" and "e" come:

            ... | `Hel`                      the tail is "Hel", whose token may still change
            ... | `Hello`                    tail "Hello": one token fed in place of another
            ... `Hello` | ` w`               the space is a border: tail " w"
            ... `Hello` | ` we`
        """
        anchor, before, _ = self._tail
        tail, old = Tail(anchor, before + text, len(before)), self.tokens[self._final :]
        final, rest, self._tail = self._tokenizer.split_tail(tail, old, least=self._prompts_part)
        edit = edit_between(old, final + rest)
        keep = self._final + edit.keep
        self.tokens[keep:] = edit.feed
        if self._tail is not tail:
            self._final += len(final)
            self._prompts_part = 0
            end = len(self._response) - len(self.held)
            self._marks.append(_Mark(self._tail_start(end), end, self._final, self._tail.anchor))
        return Edit(keep, edit.feed)

    def _tail_start(self, end: int) -> int:
        """Where the tail, which ends at the byte `end` of the response, begins in it."""
        text = self._tail.text
        start = max(end - len(text.encode()), 0)
        # U+FFFD has three bytes; what it stands for has one to three.
        while (
            "\ufffd" in text
            and start < end
            and self._response[start:end].decode("utf-8", "replace") != text
        ):
            start += 1
        return start

    def _freeze(self) -> None:
        """Declare the whole stream final, border or not."""
        anchor = self._tail.text[-1:] or self._tail.anchor
        self._final = len(self.tokens)
        self._tail, self._prompts_part = Tail(anchor, ""), 0
        received = len(self._response) - len(self.held)
        self._marks.append(_Mark(received, received, self._final, anchor))

    def _restart(self) -> None:
        """Back to the prompt, then the response's bytes again."""
        self.tokens[:] = self._prompt_tokens
        self._final = self._floor = len(self._prompt.tokens)
        self._tail = Tail(self._prompt.anchor, self._prompt.pending)
        self._prompts_part = len(self._prompt.pending)
        self._answering = False
        self._decoder = _decoder()
        self._read(bytes(self._response))

    def _return_to(self, mark: _Mark) -> None:
        """Back to a border, then the response's bytes after it again."""
        del self.tokens[mark.final :]
        self._final, self._tail, self._prompts_part = mark.final, Tail(mark.anchor, ""), 0
        self._decoder = _decoder()
        self._read(bytes(self._response[mark.at :]))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")
