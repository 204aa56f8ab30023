"""Pieces -> the choices of OpenAI's two interfaces, whole and in chunks. Pure functions of pieces.

chat          {"index": 0, "message": {"role": "assistant", "content": "..."}, ...}
              thoughts before the answer as "reasoning_content" beside it, as other servers have it
              {"index": 0, "delta": {"content": "..."}, "finish_reason": null, ...}
completions   {"index": 0, "text": "...", "finish_reason": null, ...} both ways
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from cmc_local.model.replies import Piece
from cmc_local.server.answering import Event
from cmc_local.server.bodies import Generation
from cmc_local.server.errors import Refusal
from cmc_local.server.logprobs import TextLogprobs, chat_content, joined
from cmc_local.server.replying import Tally
from cmc_local.server.served import Entry
from cmc_local.server.service import fingerprint
from cmc_local.server.tools import CallReader, whole_calls
from cmc_local.text.vocabulary import Vocabulary

Choice = dict[str, Any]


class Choices:
    """The frame around choices, for one request."""

    def __init__(
        self, shape: Shape, *, model: str, fingerprint: str, usage: bool, notices: Sequence[str]
    ) -> None:
        """With `usage` a stream ends with what it cost; `notices` are for its reader."""
        self._shape = shape
        self._fixed = {
            "id": shape.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._usage = usage
        self._opened: set[int] = set()
        self._notices = [*notices]

    def whole(self, pieces: Mapping[int, Sequence[Piece]], tally: Tally) -> dict[str, Any]:
        self._notices += [one.notice for some in pieces.values() for one in some if one.notice]
        choices = [self._shape.whole(index, pieces[index]) for index in sorted(pieces)]
        fixed = {**self._fixed, "object": self._shape.whole_object}
        return {**fixed, "choices": choices, "usage": tally.usage(), **self._more(tally)}

    def opening(self) -> Iterator[Event]:
        yield from ()

    def piece(self, choice: int, piece: Piece, tally: Tally) -> Iterator[Event]:
        self._notices += [piece.notice] if piece.notice else []
        if choice not in self._opened:
            self._opened.add(choice)
            if (opening := self._shape.opening(choice)) is not None:
                yield self._chunk([opening])
        if (told := self._shape.chunk(choice, piece)) is not None:
            yield self._chunk([told], **({} if piece.finish_reason is None else self._more(tally)))

    def closing(self, tally: Tally) -> Iterator[Event]:
        if self._usage:
            self._notices.clear()
            yield self._chunk([], **{"usage": tally.usage(), **self._more(tally)})
        yield None, "[DONE]"

    def failed(self, refusal: Refusal) -> Iterator[Event]:
        yield None, refusal.body()

    def _chunk(self, choices: list[Choice], **more: Any) -> Event:
        fixed = {**self._fixed, "object": self._shape.chunk_object, "choices": choices}
        return None, {**fixed, **({"usage": None} if self._usage else {}), **more}

    def _more(self, tally: Tally) -> dict[str, Any]:
        """llama-server's timings, and what the reader should know."""
        timings = tally.speeds()
        more: dict[str, Any] = {} if timings is None else {"timings": timings}
        return {**more, "cmc": {"notices": self._notices[:]}} if self._notices else more


def choices(shape: Shape, body: Generation, entry: Entry) -> Choices:
    """The frame for one request."""
    return Choices(
        shape,
        model=body.model or entry.served_name,
        fingerprint=fingerprint(entry),
        usage=body.include_usage,
        notices=body.notices,
    )


class Shape(Protocol):
    """One of the two interfaces, for one request."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def opening(self, index: int) -> Choice | None:
        """What a choice's stream begins with."""

    def chunk(self, index: int, piece: Piece) -> Choice | None:
        """What a piece becomes in a stream."""

    def whole(self, index: int, pieces: Sequence[Piece]) -> Choice:
        """A choice that is whole."""


class Chat:
    """`/v1/chat/completions`."""

    prefix: ClassVar[str] = "chatcmpl-"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def __init__(
        self, vocabulary: Vocabulary, *, logprobs: bool, plain: bool, calls: Collection[str] = ()
    ) -> None:
        """`calls` are the tools that replies may call."""
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._plain = plain
        self._calls = calls
        self._readers: dict[int, CallReader] = {}

    def opening(self, index: int) -> Choice | None:
        return _choice(index, None, None, delta={"role": "assistant", "content": ""})

    def chunk(self, index: int, piece: Piece) -> Choice | None:
        if self._calls:
            delta = self._read(index, piece)
        else:
            told = piece.text or (piece.details and not piece.thinking)
            delta = {"content": piece.text} if told else {}
        if piece.thinking:
            delta["reasoning_content"] = piece.thinking
        if not delta and piece.finish_reason is None and not piece.details:
            return None
        return _choice(index, self._content([piece]), self._reason(index, piece), delta=delta)

    def whole(self, index: int, pieces: Sequence[Piece]) -> Choice:
        text: str | None = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts := "".join(piece.thinking for piece in pieces):
            message["reasoning_content"] = thoughts
        if self._calls:
            deltas = [self._read(index, piece) for piece in pieces]
            message["content"] = "".join(one.get("content", "") for one in deltas)
            if calls := whole_calls(deltas):
                message["content"] = message["content"] or None
                message["tool_calls"] = calls
        reason = self._reason(index, pieces[-1])
        return _choice(index, self._content(pieces), reason, message=message)

    def _read(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece as content and calls."""
        reader = self._readers.setdefault(index, CallReader(self._calls))
        return reader.read(piece.text, last=piece.finish_reason is not None)

    def _reason(self, index: int, piece: Piece) -> str | None:
        called = index in self._readers and self._readers[index].calls
        return "tool_calls" if called and piece.finish_reason == "stop" else piece.finish_reason

    def _content(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        said = [piece for piece in pieces if piece.text or not piece.thinking]
        details = [one for piece in said for one in piece.details]
        content = chat_content(details, self._vocabulary, plain=self._plain)
        return {"content": content, "refusal": None}


class Text:
    """`/v1/completions`."""

    prefix: ClassVar[str] = "cmpl-"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Callable[[int], str],
        *,
        alternatives: int | None,
        echo: bool,
    ) -> None:
        """`prompt` gives the text of a choice's prompt."""
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._alternatives = alternatives
        self._echo = echo
        self._logprobs: dict[int, TextLogprobs] = {}
        self._echoed: set[int] = set()

    def opening(self, index: int) -> Choice | None:
        return None

    def chunk(self, index: int, piece: Piece) -> Choice | None:
        text = self._text(index, piece)
        logprobs = self._piece(index, piece)
        told = text or piece.finish_reason is not None or (logprobs and logprobs["tokens"])
        return _choice(index, logprobs, piece.finish_reason, text=text) if told else None

    def whole(self, index: int, pieces: Sequence[Piece]) -> Choice:
        text = "".join(self._text(index, piece) for piece in pieces)
        parts = [part for piece in pieces if (part := self._piece(index, piece)) is not None]
        logprobs = joined(parts) if parts else None
        return _choice(index, logprobs, pieces[-1].finish_reason, text=text)

    def _text(self, index: int, piece: Piece) -> str:
        """The piece's text; an echoed prompt comes back as it was given, once."""
        if not self._echo or index in self._echoed:
            return "" if piece.echo else piece.text
        self._echoed.add(index)
        return self._prompt(index) + ("" if piece.echo else piece.text)

    def _piece(self, index: int, piece: Piece) -> dict[str, list[Any]] | None:
        if self._alternatives is None:
            return None
        if index not in self._logprobs:
            offset = -self._spaces(index, piece) if self._echo else len(self._prompt(index))
            self._logprobs[index] = TextLogprobs(self._vocabulary, self._alternatives, offset)
        # The token that ended the reply counts here: who scores a text cuts off the last token.
        end = piece.end
        return self._logprobs[index].piece([*piece.details, *([end] if end else [])])

    def _spaces(self, index: int, piece: Piece) -> int:
        """The space that SentencePiece puts before a text, which the prompt does not have."""
        texts = (self._vocabulary.tokens[one.token] for one in piece.details)
        first = next((text for text in texts if text), b"")
        return int(first.startswith(b" ") and not self._prompt(index).startswith(" "))


def _choice(index: int, logprobs: Any, reason: str | None, **content: Any) -> Choice:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
