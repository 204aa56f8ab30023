"""Many replies at once: each has a slot, and all of them have one step together.

    submit -> a free slot, best the one that remembers the prompt's beginning -> step, step -> end

A reply that ends frees its slot for the next request at once; nobody waits for the others of "its"
batch (continuous batching). Each request has its own adapters, strengths and sampling. Who waits
for a slot, and whose turn it is, is the business of `shared.py`.

A `Reply` is a request under way:

    begin -> the notice; read, where the prompt is given back -> the prompt
    add   <- the tokens that its run chose in one step -> the text that they set free
    end   -> the last piece: why it ended, what it cost
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from time import perf_counter
from typing import Protocol

from cmc_local.engine.logprobs import LogprobRecorder, TokenDetail
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import Chooser, Drafter, Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.errors import UsageError
from cmc_local.model.echo import EchoReader
from cmc_local.model.replies import FinishReason, Piece
from cmc_local.model.requests import Request
from cmc_local.settings import Sampling
from cmc_local.text.alignment import common_prefix
from cmc_local.text.text_stream import TextStream
from cmc_local.text.vocabulary import Role, Vocabulary

Outcome = tuple[int, Piece | UsageError]
"""A request's number, and what came of it."""

MOST_FORCED = 8
"""Forced tokens that one step decodes at once."""


class Sampler(Chooser, Protocol):
    """A native sampler chain."""

    def forced(self) -> Sequence[int]: ...

    def close(self) -> None: ...


class _Forced:
    """Drafts the tokens that a reply's form leaves no choice about: they are all right."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def draft(self, most: int) -> Sequence[int]:
        return self._sampler.forced()[: min(most, MOST_FORCED)]

    def extend(self, tokens: Sequence[int]) -> None:
        """The sampler knows."""


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
            if _ends(token, vocabulary, sampling.stop):
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
            drafter=self._drafter(),
            recorder=self._recorder,
        )
        return self.run

    def _drafter(self) -> Drafter | None:
        request = self._request
        if request.sampling.has_form:
            return _Forced(self._sampler)
        return PromptLookup(request.tokens, drafts=request.drafts) if request.drafts else None

    def _new_recorder(self) -> LogprobRecorder | None:
        top = self._request.top_logprobs
        return None if top is None else LogprobRecorder(top, plain=self._request.plain)


def _ends(token: int, vocabulary: Vocabulary, stops: Sequence[str]) -> bool:
    """Whether a token ends a reply: as the model means it, or a control token named as a stop text.

    A control token spells nothing, so it is never found in the text.
    """
    role = vocabulary.roles[token]
    return bool(role == Role.EOS or (role > Role.BYTE and vocabulary.names[token] in stops))


class Batch:
    """The replies under way on one engine. Belongs to one thread."""

    def __init__(
        self, engine: Engine, slots: Sequence[Slot], make_sampler: Callable[[Sampling], Sampler]
    ) -> None:
        self._engine = engine
        self._free = deque(slots)  # the one that rested longest first
        self._make_sampler = make_sampler
        self._replies: dict[int, Reply] = {}
        self._cancelled: set[int] = set()
        self._next = 0

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._replies)

    @property
    def free(self) -> int:
        """Slots that no request has."""
        return len(self._free)

    def submit(self, request: Request, sampler: Sampler | None = None) -> int:
        """Give a request a free slot; its number in what `step` returns.

        With a sampler made before, or a new one. Raises UsageError where no slot is free.
        """
        if not self._free:
            raise UsageError("no slot is free: step until a reply ends")
        sampler = sampler or self._make_sampler(request.sampling)
        slot = max(self._free, key=lambda slot: common_prefix(slot.cached, request.tokens))
        self._free.remove(slot)
        self._replies[self._next] = Reply(request, self._engine, slot, sampler)
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        """End a request at the next step; nothing happens to one that is over."""
        if number in self._replies:
            self._cancelled.add(number)

    def step(self) -> list[Outcome]:
        """Take every reply further; the pieces that came, by the numbers of their requests.

        The last piece of each request has a finish reason. A request whose grammar allows nothing
        ends in a UsageError instead; any other error is raised, and ends all that are under way.
        """
        try:
            outcomes = self._begin()
            outcomes += self._end_cancelled_and_full()
            outcomes += self._read()
            outcomes += self._write()
        except BaseException:
            self.clear()
            raise
        return outcomes

    def clear(self) -> None:
        """End all that is under way; nobody is told."""
        for number in list(self._replies):
            self._end(number)

    def _begin(self) -> list[Outcome]:
        new = [(number, reply) for number, reply in self._replies.items() if not reply.begun]
        return [(number, piece) for number, reply in new for piece in reply.begin()]

    def _end_cancelled_and_full(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for number, reply in list(self._replies.items()):
            if number in self._cancelled:
                outcomes.append(self._end(number, "cancelled"))
            elif reply.run is not None and not self._engine.has_room(reply.run):
                outcomes.append(self._end(number, "length"))
        return outcomes

    def _read(self) -> list[Outcome]:
        """Read on in one of the prompts that are to be given back.

        One a step and by turns, so that neither replies nor cancellations wait for many.
        """
        number = next((number for number, one in self._replies.items() if one.reading), None)
        if number is None:
            return []
        reply = self._replies[number] = self._replies.pop(number)  # behind the others
        outcomes: list[Outcome] = [(number, piece) for piece in reply.read()]
        if reply.reason is not None:
            outcomes.append(self._end(number))
        return outcomes

    def _write(self) -> list[Outcome]:
        """One step of all replies."""
        writing = [(n, one, one.run) for n, one in self._replies.items() if one.run is not None]
        if not writing:
            return []
        begun = perf_counter()
        chosen = self._engine.step([run for _, _, run in writing])
        spent = perf_counter() - begun
        outcomes: list[Outcome] = []
        for (number, reply, run), tokens in zip(writing, chosen, strict=True):
            run.timings.total_seconds += spent
            if run.failed is not None:
                self._end(number)
                outcomes.append((number, run.failed))
                continue
            if (piece := reply.add(tokens)) is not None:
                outcomes.append((number, piece))
            if reply.reason is not None:
                outcomes.append(self._end(number))
        return outcomes

    def _end(self, number: int, reason: FinishReason = "cancelled") -> tuple[int, Piece]:
        """Free the slot; the reply's last piece."""
        reply = self._replies.pop(number)
        self._cancelled.discard(number)
        self._free.append(reply.slot)
        return number, reply.end(reason)
