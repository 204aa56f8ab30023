"""`/health`, `/props`, `/metrics`: how the model is doing, not only whether a socket answers."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local import __version__
from cmc_local.server.errors import RETRY_SECONDS
from cmc_local.server.service import Service

_COUNTED = ("active", "waiting")


async def health(request: Request) -> Response:
    """200 while the model answers, else 503 and why not."""
    service: Service = request.app.state.service
    status = service.health()
    told: dict[str, Any] = {"status": status}
    if status == "ok":
        states = [one.state for one in service.running]
        active, waiting = (sum(getattr(one, name) for one in states) for name in _COUNTED)
        return JSONResponse({**told, "active": active, "waiting": waiting})
    return JSONResponse(told, 503, {"Retry-After": str(RETRY_SECONDS)})


async def props(request: Request) -> Response:
    """What is served, in llama-server's shape as far as it means something here."""
    service: Service = request.app.state.service
    entry = service.find(request.query_params.get("model"))
    base = entry.serving.base
    return JSONResponse(
        {
            "default_generation_settings": {"n_ctx": base.n_ctx},
            "total_slots": entry.serving.state.slots,
            "model_alias": entry.served_name,
            "chat_template": base.chat_template or "",
            "build_info": f"cmc-local {__version__}",
        }
    )


async def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
