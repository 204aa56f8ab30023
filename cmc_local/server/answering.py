"""One request for text: its replies as one JSON object, or as a stream of server-sent events.

What these look like is the frame's business: `shapes.py` has OpenAI's choices.

Errors before the first piece have a status of their own; later ones come as a line of the stream.
A client that leaves is noticed while it waits for the first piece, for the rest, and in a stream.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cmc_local.model.replies import Piece
from cmc_local.server.errors import Refusal, internal
from cmc_local.server.replying import ClientLeft, Replying, Tally, unless_left
from cmc_local.server.service import Service

Event = tuple[str | None, Mapping[str, Any] | str]
"""A server-sent event: its name, where the protocol names events, and its data."""
LEFT = 499
"""The status in logs and counts of a request whose client left; nobody sees it."""
_PING_SECONDS = 15


class Frame(Protocol):
    """What stands around the replies, in one of the protocols."""

    def whole(self, pieces: Mapping[int, Sequence[Piece]], tally: Tally) -> dict[str, Any]:
        """The answer as one JSON object; the pieces of each choice."""

    def opening(self) -> Iterable[Event]:
        """What a stream begins with."""

    def piece(self, choice: int, piece: Piece, tally: Tally) -> Iterable[Event]:
        """What a piece becomes in a stream."""

    def closing(self, tally: Tally) -> Iterable[Event]:
        """What a stream ends with."""

    def failed(self, refusal: Refusal) -> Iterable[Event]:
        """How a stream ends where something went wrong."""


async def answer(
    request: Request, service: Service, frame: Frame, replying: Replying, *, stream: bool
) -> Response:
    """The response; closes `replying` when it ends, however it ends."""
    try:
        if not stream:
            whole = await unless_left(request.receive, _whole(frame, replying))
            replying.close()
            return JSONResponse(whole)
        first = await unless_left(request.receive, replying.next())
        assert first is not None
        events = _events(frame, replying, first)
        return _Stream(events, replying, seconds=service.limits.send_seconds)
    except ClientLeft:
        replying.close()
        return Response(status_code=LEFT)
    except BaseException:
        replying.close()
        raise


class _Stream(EventSourceResponse):
    """Server-sent events; when the client leaves, replies that are under way are cancelled."""

    def __init__(
        self, events: AsyncIterator[ServerSentEvent], replying: Replying, *, seconds: float
    ) -> None:
        super().__init__(
            events,
            sep="\n",
            ping=_PING_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
            send_timeout=seconds,
        )
        self._replying = replying

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:  # the client takes nothing: the connection is closed
            return
        finally:
            self._replying.close()


async def _whole(frame: Frame, replying: Replying) -> dict[str, Any]:
    pieces: dict[int, list[Piece]] = {}
    while (came := await replying.next()) is not None:
        pieces.setdefault(came[0], []).append(came[1])
    return frame.whole(pieces, replying.tally)


async def _events(
    frame: Frame, replying: Replying, first: tuple[int, Piece]
) -> AsyncIterator[ServerSentEvent]:
    came: tuple[int, Piece] | None = first
    try:
        for event in frame.opening():
            yield _sent(event)
        while came is not None:
            for event in frame.piece(*came, replying.tally):
                yield _sent(event)
            came = await replying.next()
        for event in frame.closing(replying.tally):
            yield _sent(event)
    except Refusal as refused:
        for event in frame.failed(refused):
            yield _sent(event)
    except Exception:
        logging.getLogger(__name__).exception("a stream ended by an error")
        for event in frame.failed(internal()):
            yield _sent(event)


def _sent(event: Event) -> ServerSentEvent:
    name, data = event
    # ASCII alone: some clients take U+2028 and U+0085 for the end of a line.
    text = (
        data if isinstance(data, str) else json.dumps(data, allow_nan=False, separators=(",", ":"))
    )
    return ServerSentEvent(text, event=name, sep="\n")
