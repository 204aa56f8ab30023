"""What is noted of each request: one line on the log, counts, and faults of the server itself.

    12:00:01 POST /v1/chat/completions 200 0.532s

No line has a query, a header or a body in it.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmc_local.server.answering import LEFT
from cmc_local.server.errors import internal
from cmc_local.server.metrics import Metrics

log = logging.getLogger("cmc_local.access")
_PATH_CHARACTERS: Final = 200


class Observed:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            logging.getLogger(__name__).exception("internal error")
            if status == LEFT:
                await internal().response()(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            seconds = time.monotonic() - begun
            path = scope.get("raw_path", b"").decode("ascii", "replace")[:_PATH_CHARACTERS]
            log.info("%s %s %d %.3fs", scope["method"], path, status, seconds)
