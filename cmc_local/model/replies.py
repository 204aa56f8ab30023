"""A request under way, and what its reader gets: `Piece` by `Piece`, or one `Completion`.

begin -> the notice; read, where the prompt is given back -> the prompt
add   <- the tokens that its run chose in one step -> the text that they set free
end   -> the last piece: why it ended, what it cost
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal, Protocol

from cmc_local.engine.logprobs import LogprobRecorder, TokenDetail
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import Chooser, Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.engine.timings import Timings
from cmc_local.model.echo import EchoReader
from cmc_local.model.requests import Request
from cmc_local.text.text_stream import TextStream
from cmc_local.text.vocabulary import Role

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """A part of a reply: whole characters, never a part of a stop text.

    The last piece alone has a finish reason and timings (none where the reply was cancelled before
    it began); a notice comes in a piece of its own.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    notice: str = ""
    details: tuple[TokenDetail, ...] = ()
    """One for each of `tokens`, where that was asked for."""
    echo: bool = False
    """Whether this is the prompt, and no part of the reply."""
    end: TokenDetail | None = None
    """The token by which the model ended the reply, on the last piece, where details are asked."""


@dataclass(frozen=True)
class Completion:
    """A whole reply."""

    text: str
    tokens: tuple[int, ...]
    """The base model's tokens, without the one that ended the reply."""
    finish_reason: FinishReason
    timings: Timings
    notices: tuple[str, ...] = ()
    details: tuple[TokenDetail, ...] = ()
    """One for each of `tokens`, where that was asked for."""


def completion(pieces: Iterable[Piece]) -> Completion:
    """The pieces of one reply, joined."""
    parts = list(pieces)
    last = parts[-1]
    assert last.finish_reason is not None and last.timings is not None
    return Completion(
        "".join(part.text for part in parts),
        tuple(token for part in parts for token in part.tokens),
        last.finish_reason,
        last.timings,
        tuple(part.notice for part in parts if part.notice),
        tuple(one for part in parts for one in part.details),
    )


class Sampler(Chooser, Protocol):
    """A native sampler chain."""

    def close(self) -> None: ...


class Reply:
    """A request under way in a slot, whose sampler it owns."""

    def __init__(self, request: Request, engine: Engine, slot: Slot, sampler: Sampler) -> None:
        """Nothing is done before `begin`."""
        self.slot = slot
        self.run: Run | None = None
        """Its tokens; None while the prompt is still to be given back."""
        self.reason: FinishReason | None = None
        """Why it ended; None while it goes on."""
        self._request = request
        self._engine = engine
        self._sampler = sampler
        self._reader: EchoReader | None = None
        self._recorder = self._new_recorder()
        self._stream = TextStream(request.sampling.stop)
        self._count = 0
        self._tokens: list[int] = []  # whose text is held back
        self._details: list[TokenDetail] = []
        self._end: TokenDetail | None = None

    @property
    def begun(self) -> bool:
        """Whether `begin` was called."""
        return self.run is not None or self.reading

    @property
    def reading(self) -> bool:
        """Whether its prompt is being read, to be given back."""
        return self._reader is not None

    def begin(self) -> list[Piece]:
        """Take the slot; the notice, where there is one."""
        request, echo = self._request, self._request.echo
        if echo is None:
            self._write()
        else:
            self._reader = EchoReader(
                self._engine, self.slot, request.tokens, echo, self._new_recorder()
            )
        return [Piece("", notice=request.notice)] if request.notice else []

    def read(self) -> list[Piece]:
        """Read on in the prompt; once all of it is read it comes back, and the reply begins."""
        reader, request = self._reader, self._request
        assert reader is not None and request.echo is not None
        if reader.step():
            return []
        self._reader = None
        reader.book(self._write().timings)
        if not request.sampling.max_tokens:
            self.reason = "length"
        details = tuple(reader.details)
        return [Piece(request.echo.text, tuple(request.tokens), details=details, echo=True)]

    def add(self, chosen: Sequence[int]) -> Piece | None:
        """The text that these tokens set free, up to the one that ends the reply."""
        vocabulary, sampling, text = self._engine.base.vocabulary, self._request.sampling, ""
        details = self._recorder.collected() if self._recorder is not None else []
        for token, detail in zip_longest(chosen, details):
            if vocabulary.roles[token] == Role.EOS:
                self.reason = "stop"
                self._end = detail
                break
            self._count += 1
            self._tokens.append(token)
            if detail is not None:
                self._details.append(detail)
            text += self._stream.push(vocabulary.tokens[token])
            if self._stream.stopped:
                self.reason = "stop"
                break
            if self._count >= sampling.max_tokens:
                self.reason = "length"
                break
        if not text:
            return None
        piece = Piece(text, tuple(self._tokens), details=tuple(self._details))
        self._tokens.clear()
        self._details.clear()
        return piece

    def end(self, reason: FinishReason) -> Piece:
        """Leave the slot; the last piece, for `reason` if the reply had none of its own."""
        self.reason = self.reason or reason
        self._engine.end(self.slot)
        self._sampler.close()
        if self.run is None:
            return Piece("", finish_reason=self.reason)
        return Piece(
            self._stream.finish(),
            tuple(self._tokens),
            self.reason,
            replace(self.run.timings, generated_tokens=self._count),
            details=tuple(self._details),
            end=self._end,
        )

    def _write(self) -> Run:
        request = self._request
        self.run = self._engine.begin(
            self.slot,
            request.tokens,
            self._sampler,
            request.active,
            lookup=PromptLookup(request.tokens, drafts=request.drafts) if request.drafts else None,
            recorder=self._recorder,
        )
        return self.run

    def _new_recorder(self) -> LogprobRecorder | None:
        top = self._request.top_logprobs
        return None if top is None else LogprobRecorder(top, plain=self._request.plain)
