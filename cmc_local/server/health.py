"""`/health` and `/metrics`: how the model's thread is doing, not only whether a socket answers."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server.errors import RETRY_SECONDS
from cmc_local.server.service import Service


async def health(request: Request) -> Response:
    """200 while the model answers, else 503 and why not."""
    service: Service = request.app.state.service
    status = service.health()
    told: dict[str, Any] = {"status": status}
    if status == "ok" and service.model is not None:
        state = service.model.state
        return JSONResponse({**told, "active": state.active, "waiting": state.waiting})
    return JSONResponse(told, 503, {"Retry-After": str(RETRY_SECONDS)})


async def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
