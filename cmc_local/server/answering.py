"""One request for text: its replies as one JSON object, or as a stream of server-sent events.

Errors before the first piece have a status of their own; later ones come as a line of the stream.
A client that leaves is noticed while it waits for the first piece, for the rest, and in a stream.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cmc_local.model.replies import Piece
from cmc_local.server.bodies import Generation
from cmc_local.server.errors import Refusal, internal
from cmc_local.server.replying import ClientLeft, Replying, unless_left
from cmc_local.server.service import Service
from cmc_local.server.shapes import Shape

LEFT = 499
"""The status in logs and counts of a request whose client left; nobody sees it."""
_PING_SECONDS = 15


async def answer(
    request: Request, service: Service, body: Generation, shape: Shape, replying: Replying
) -> Response:
    """The response; closes `replying` when it ends, however it ends."""
    frame = _Frame(service, body, shape)
    try:
        if not body.stream:
            whole = await unless_left(request.receive, _whole(frame, replying))
            replying.close()
            return JSONResponse(whole)
        first = await unless_left(request.receive, replying.next())
        assert first is not None
        events = _events(frame, replying, first, usage=body.include_usage)
        return _Stream(events, replying, seconds=service.limits.send_seconds)
    except ClientLeft:
        replying.close()
        return Response(status_code=LEFT)
    except BaseException:
        replying.close()
        raise


class _Frame:
    """What stands around the choices."""

    def __init__(self, service: Service, body: Generation, shape: Shape) -> None:
        self.shape = shape
        self._fixed = {
            "id": shape.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": body.model or service.name(),
            "system_fingerprint": service.fingerprint(),
        }

    def whole(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {**self._fixed, "object": self.shape.whole_object, "choices": choices, **more}

    def chunk(self, choices: list[Any], **more: Any) -> str:
        return _json({**self._fixed, "object": self.shape.chunk_object, "choices": choices, **more})


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


async def _whole(frame: _Frame, replying: Replying) -> dict[str, Any]:
    pieces: dict[int, list[Piece]] = {}
    notices: list[str] = []
    while (came := await replying.next()) is not None:
        choice, piece = came
        pieces.setdefault(choice, []).append(piece)
        notices += [piece.notice] if piece.notice else []
    choices = [frame.shape.whole(index, pieces[index]) for index in sorted(pieces)]
    return frame.whole(choices, usage=replying.tally.usage(), **_more(replying, notices))


async def _events(
    frame: _Frame, replying: Replying, first: tuple[int, Piece], *, usage: bool
) -> AsyncIterator[ServerSentEvent]:
    more: dict[str, Any] = {"usage": None} if usage else {}
    opened: set[int] = set()
    notices: list[str] = []
    came: tuple[int, Piece] | None = first
    try:
        while came is not None:
            index, piece = came
            notices += [piece.notice] if piece.notice else []
            if index not in opened:
                opened.add(index)
                if (opening := frame.shape.opening(index)) is not None:
                    yield _event(frame.chunk([opening], **more))
            if (choice := frame.shape.chunk(index, piece)) is not None:
                last = {} if piece.finish_reason is None else _more(replying, notices)
                yield _event(frame.chunk([choice], **more, **last))
            came = await replying.next()
        if usage:
            yield _event(frame.chunk([], usage=replying.tally.usage(), **_more(replying, [])))
        yield _event("[DONE]")
    except Refusal as refused:
        yield _event(_json(refused.body()))
    except Exception:
        logging.getLogger(__name__).exception("a stream ended by an error")
        yield _event(_json(internal().body()))


def _more(replying: Replying, notices: list[str]) -> dict[str, Any]:
    """llama-server's timings, and what the reader should know."""
    timings = replying.tally.speeds()
    more: dict[str, Any] = {} if timings is None else {"timings": timings}
    return {**more, "cmc": {"notices": notices}} if notices else more


def _event(data: str) -> ServerSentEvent:
    return ServerSentEvent(data, sep="\n")


def _json(content: Any) -> str:
    # ASCII alone: some clients take U+2028 and U+0085 for the end of a line.
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
