"""`/v1/models`: the names that a request's `model` may have, and which models are loaded."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server import names
from cmc_local.server.served import Entry
from cmc_local.server.service import Service


async def list_models(request: Request) -> Response:
    """Each model with all its adapters, then the base alone and with each adapter."""
    service: Service = request.app.state.service
    if len(service.models.entries) == 1:
        service.find(None)  # refused while it is being loaded
    data = [
        _told(name, entry, service)
        for entry in service.models.entries
        for name in names.listed(entry.name, entry.alphas)
    ]
    return JSONResponse({"object": "list", "data": data})


async def one_model(request: Request) -> Response:
    """Any name that a request may use, listed or not."""
    service: Service = request.app.state.service
    name: str = request.path_params["name"]
    if not name:  # /v1/models/, as some clients write it
        return await list_models(request)
    entry = service.models.find(name)
    names.parse(name, entry.name, entry.alphas)
    return JSONResponse(_told(name, entry, service))


def _told(name: str, entry: Entry, service: Service) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "cmc-local",
        "state": entry.state,
        "base": entry.name,
        "alphas": entry.alphas,
    }
