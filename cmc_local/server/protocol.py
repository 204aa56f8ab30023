"""HTTP/1.1 as uvicorn reads it; what is no HTTP is answered in OpenAI's shape, and so is whoever
comes when there are too many connections. Knows no models and no routes.
"""

from __future__ import annotations

from typing import Any, Final

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cmc_local.server.errors import Refusal, unavailable

_NO_HTTP: Final = Refusal(
    400, "this is no valid HTTP/1.1 request: one Host header, one length, a head that ends"
)
_TOO_MANY: Final = unavailable("too many connections: try again later", "too_many_connections")


class Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        app, most = self.app, self.limit_concurrency
        self.limit_concurrency = None

        async def within(scope: Scope, receive: Receive, send: Send) -> None:
            crowded = most is not None and len(self.connections) > most
            await (_turn_away if crowded else app)(scope, receive, send)

        self.app = within

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer is already on its way; then close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            told = _NO_HTTP.response()
            headers = [*told.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(told.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    response = _TOO_MANY.response()
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
