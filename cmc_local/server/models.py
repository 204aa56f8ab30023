"""`/v1/models`: the names that a request's `model` may have."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server import names
from cmc_local.server.service import Service


async def list_models(request: Request) -> Response:
    """As the server was started first, then the base alone and with each adapter."""
    service: Service = request.app.state.service
    found = names.listed(service.base, service.serving().alphas)
    return JSONResponse({"object": "list", "data": [_entry(name, service) for name in found]})


async def one_model(request: Request) -> Response:
    """Any name that a request may use, listed or not."""
    service: Service = request.app.state.service
    name: str = request.path_params["name"]
    if not name:  # /v1/models/, as some clients write it
        return await list_models(request)
    names.parse(name, service.base, service.serving().alphas)
    return JSONResponse(_entry(name, service))


def _entry(name: str, service: Service) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "cmc-local",
    }
