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
from cmc_local.engine.timings import Timings
from cmc_local.errors import UsageError
from cmc_local.model.echo import EchoReader
from cmc_local.model.replies import FinishReason, Piece
from cmc_local.model.requests import Request
from cmc_local.settings import Sampling
from cmc_local.text.alignment import common_prefix
from cmc_local.text.text_stream import TextStream
from cmc_local.text.thinking import ThoughtReader
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

    def __init__(
        self,
        request: Request,
        engine: Engine,
        slot: Slot,
        sampler: Sampler,
        thinker: Sampler | None = None,
    ) -> None:
        """Nothing is done before `begin`; `thinker` chooses what thoughts are written apart."""
        self.slot = slot
        self.run: Run | None = None
        """Its tokens; None while the prompt is still to be given back."""
        self.reason: FinishReason | None = None
        """Why it ended; None while it goes on."""
        self._request = request
        self._engine = engine
        self._sampler = sampler
        self._thinker = thinker
        """None once the answer is being written."""
        self._reader: EchoReader | None = None
        self._recorder = self._new_recorder()
        self._stream = TextStream(() if thinker is not None else request.sampling.stop)
        self._thoughts = None if request.thinking is None else ThoughtReader(request.thinking)
        self._before: Timings | None = None  # of the run that wrote the thoughts
        self._said: list[int] = []  # by it
        self._sure = 0  # how many of these the answer goes on from
        self._count = 0
        self._tokens: list[int] = []  # whose text is held back
        self._details: list[TokenDetail] = []
        self._end: TokenDetail | None = None
        self._stopped_by: str | None = None  # a control token named as a stop text

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
            self._write(request.tokens)
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
        reader.book(self._write(request.tokens).timings)
        if not request.sampling.max_tokens:
            self.reason = "length"
        details = tuple(reader.details)
        return [Piece(request.echo.text, tuple(request.tokens), details=details, echo=True)]

    def add(self, chosen: Sequence[int]) -> Piece | None:
        """The text that these tokens set free, up to the one that ends the reply."""
        vocabulary, sampling = self._engine.base.vocabulary, self._request.sampling
        details = self._recorder.collected() if self._recorder is not None else []
        thinking, text = "", ""
        for token, detail in zip_longest(chosen, details):
            if _ends(token, vocabulary, sampling.stop):
                if self._may_answer():
                    self._answer()
                else:
                    self.reason, self._end = "stop", detail
                    name = vocabulary.names[token]
                    self._stopped_by = name if name in sampling.stop else None
                break
            self._count += 1
            self._tokens.append(token)
            if detail is not None:
                self._details.append(detail)
            thought, said = self._read(self._stream.push(self._spelled(token)))
            thinking += thought
            if said and self._may_answer():
                self._answer()
                break
            text += said
            self._note(token)
            if self._stream.stopped_by is not None:
                self.reason = "stop"
                break
            if self._count >= sampling.max_tokens:
                self.reason = "length"
                break
        if not text and not thinking:
            return None
        piece = Piece(text, tuple(self._tokens), details=tuple(self._details), thinking=thinking)
        self._tokens.clear()
        self._details.clear()
        return piece

    def _spelled(self, token: int) -> bytes:
        """A token's text; a mark of thoughts may be a control token, which has none."""
        vocabulary, thinking = self._engine.base.vocabulary, self._request.thinking
        name = vocabulary.names[token]
        if thinking is not None and name in (thinking.marks.begin, thinking.marks.end):
            return name.encode()
        return vocabulary.tokens[token]

    def _read(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """(thoughts, answer)."""
        return ("", text) if self._thoughts is None else self._thoughts.read(text, last=last)

    def _may_answer(self) -> bool:
        """Whether thoughts are written apart and are over, or there are none."""
        return self._thinker is not None and not (self._thoughts and self._thoughts.thinking)

    def _note(self, token: int) -> None:
        """Remember a token of the thoughts, and whether the answer can begin behind it."""
        if self._thinker is None or self._thoughts is None:
            return
        self._said.append(token)
        if self._thoughts.thought and not self._stream.holds:
            self._sure = self._count

    def _answer(self) -> None:
        """Begin the answer behind the thoughts; what the thinker chose of it is taken back."""
        assert self.run is not None and self._thinker is not None and self._thoughts is not None
        kept = len(self._tokens) - (self._count - self._sure)
        del self._tokens[kept:], self._details[kept:]
        self._count = self._sure
        self._thoughts.answer_anew()
        self._stream = TextStream(self._request.sampling.stop)
        self._thinker.close()
        self._thinker, self._before = None, self.run.timings
        self._write([*self._request.tokens, *self._said[: self._sure]])

    def end(self, reason: FinishReason) -> Piece:
        """Leave the slot; the last piece, for `reason` if the reply had none of its own."""
        self.reason = self.reason or reason
        self._engine.end(self.slot)
        self._sampler.close()
        if self._thinker is not None:
            self._thinker.close()
        if self.run is None:
            return Piece("", finish_reason=self.reason)
        timings = self.run.timings
        timings = timings if self._before is None else timings.after(self._before)
        thinking, text = self._read(self._stream.finish(), last=True)
        return Piece(
            text,
            tuple(self._tokens),
            self.reason,
            replace(timings, generated_tokens=self._count),
            details=tuple(self._details),
            thinking=thinking,
            stopped_by=self._stopped_by or self._stream.stopped_by,
            end=self._end,
        )

    def _write(self, tokens: Sequence[int]) -> Run:
        """Go on from these tokens, as the thoughts or the answer are to be written."""
        request, apart = self._request, self._thinker is not None
        self.run = self._engine.begin(
            self.slot,
            tokens,
            self._thinker or self._sampler,
            () if apart and not request.sampling.steer_thinking else request.active,
            drafter=None if apart else self._drafter(tokens),
            recorder=self._recorder,
        )
        return self.run

    def _drafter(self, tokens: Sequence[int]) -> Drafter | None:
        request = self._request
        if request.sampling.has_form:
            return _Forced(self._sampler)
        return PromptLookup(tokens, drafts=request.drafts) if request.drafts else None

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
        thinker = None
        if request.thinks_apart:
            thinker = self._make_sampler(request.sampling.without_form())
        self._replies[self._next] = Reply(request, self._engine, slot, sampler, thinker)
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
