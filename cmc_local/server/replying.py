"""Replies under way for one request: their pieces as they come, their cost, their end.

    asks -> one task each -> (choice, Piece) in the order of arrival -> Tally

Knows no JSON. Closing cancels what is still under way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from starlette.types import Receive

from cmc_local.engine.timings import Timings
from cmc_local.errors import CmcError
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.server.errors import queue_full, refusal, unavailable
from cmc_local.server.served import Entry, ServedModel
from cmc_local.server.service import Service

Result = TypeVar("Result")
BEHIND: Final = 16
"""Pieces that may wait before they are joined."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def unless_left(receive: Receive, work: Awaitable[Result]) -> Result:
    """What `work` gives; it is cancelled, and ClientLeft raised, once the client has gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        for one in (task, gone):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


def _joined(piece: Piece, after: Piece) -> Piece:
    return replace(
        after,
        text=piece.text + after.text,
        thinking=piece.thinking + after.thinking,
        tokens=piece.tokens + after.tokens,
        details=piece.details + after.details,
        notice=piece.notice or after.notice,
    )


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class Tally:
    """What a request cost: `n` choices for each of its prompts."""

    n: int
    choices: int
    timings: dict[int, Timings] = field(default_factory=dict)
    """By choice, those that have ended."""

    def usage(self) -> dict[str, Any]:
        """Tokens in OpenAI's shape; a prompt counts once, however many choices it has."""
        prompts: dict[int, list[Timings]] = {}
        for choice, timings in self.timings.items():
            prompts.setdefault(choice // self.n, []).append(timings)
        prompt = sum(max(one.prompt_tokens for one in each) for each in prompts.values())
        cached = sum(min(one.reused_tokens for one in each) for each in prompts.values())
        completion = sum(one.generated_tokens for one in self.timings.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def speeds(self) -> dict[str, float] | None:
        """llama-server's `timings`, where there is one choice."""
        if self.choices != 1 or not self.timings:
            return None
        (one,) = self.timings.values()
        new = one.prompt_tokens - one.reused_tokens
        seconds = max(one.total_seconds - one.prompt_seconds, 0.0)
        return {
            "cache_n": one.reused_tokens,
            "prompt_n": new,
            "prompt_ms": round(one.prompt_seconds * 1e3, 3),
            "prompt_per_second": _rate(new, one.prompt_seconds),
            "predicted_n": one.generated_tokens,
            "predicted_ms": round(seconds * 1e3, 3),
            "predicted_per_second": _rate(one.generated_tokens, seconds),
            "delta_ms": round(one.delta_seconds * 1e3, 3),
        }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


class Replying:
    """The choices of one request."""

    def __init__(
        self, service: Service, entry: Entry, asks: Sequence[Ask], *, n: int, param: str
    ) -> None:
        """Begin them on a model. Raises Refusal (429) if they would not fit the queue.

        `param` is the field that the prompts were given in; `n` choices belong to each.
        """
        self.model: ServedModel = entry.serving
        self.tally = Tally(n, len(asks))
        self._service = service
        self._param = param
        self._begun = time.monotonic()
        self._first = True
        self._open = len(asks)
        self._came: deque[tuple[int, Piece | Exception]] = deque()
        self._news = asyncio.Event()
        waiting, most = self.model.state.waiting, service.limits.queue
        if waiting and waiting + len(asks) > most:
            raise queue_full(
                f"{waiting} replies are waiting already, and at most {most} may: try later"
            )
        self._entry: Entry | None = entry
        entry.take()
        self._tasks = [
            asyncio.ensure_future(self._reply(choice, ask)) for choice, ask in enumerate(asks)
        ]

    async def next(self) -> tuple[int, Piece] | None:
        """The next piece and its choice; None after the last. Raises Refusal, and then closes.

        Pieces of one choice are joined where many have come meanwhile, so that whoever falls behind
        the model has less to do.
        """
        if not self._open:
            return None
        while not self._came:
            self._news.clear()
            await self._news.wait()
        choice, came = self._came.popleft()
        if isinstance(came, Exception):
            self.close()
            raise self._told(came) from came
        if len(self._came) >= BEHIND:
            while (after := self._joinable(choice, came)) is not None:
                self._came.popleft()
                came = _joined(came, after)
        if came.finish_reason == "cancelled":
            self.close()
            raise unavailable("the model stopped before the reply was whole", "stopped")
        if came.finish_reason is not None:
            self._open -= 1
        self._count(choice, came)
        return choice, came

    def close(self) -> None:
        """Cancel what is under way; more than once is fine."""
        self._open = 0
        if self._entry is not None:
            self._entry.give_back()
            self._entry = None
        for task in self._tasks:
            task.cancel()

    async def _reply(self, choice: int, ask: Ask) -> None:
        try:
            async for piece in self.model.astream(ask, group=self):
                self._hear(choice, piece)
        except Exception as error:
            self._hear(choice, error)

    def _hear(self, choice: int, came: Piece | Exception) -> None:
        self._came.append((choice, came))
        self._news.set()

    def _joinable(self, choice: int, piece: Piece) -> Piece | None:
        """What came next, if it goes on where this piece ends."""
        if not self._came or self._came[0][0] != choice:
            return None
        after = self._came[0][1]
        return after if isinstance(after, Piece) and after.echo == piece.echo else None

    def _told(self, error: Exception) -> Exception:
        """How an error of the model is answered."""
        return refusal(error, param=self._param) if isinstance(error, CmcError) else error

    def _count(self, choice: int, piece: Piece) -> None:
        metrics = self._service.metrics
        if piece.tokens and not piece.echo:
            metrics.completion_tokens.inc(len(piece.tokens))
            if self._first:
                self._first = False
                metrics.first_token.observe(time.monotonic() - self._begun)
        if piece.timings is not None:
            self.tally.timings[choice] = piece.timings
            metrics.prompt_tokens.inc(piece.timings.prompt_tokens)
            metrics.cached_tokens.inc(piece.timings.reused_tokens)
