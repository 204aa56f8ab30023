"""`/v1/adapters`: what is loaded; loading and unloading while replies go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local import bundled
from cmc_local.server.bodies import AdapterBody, parse
from cmc_local.server.errors import Refusal, invalid, quoted
from cmc_local.server.served import Entry, ServedModel
from cmc_local.server.service import Service


async def list_adapters(request: Request) -> Response:
    """Those of all loaded models, with their own strengths."""
    service: Service = request.app.state.service
    if len(service.models.entries) == 1:
        service.find(None)
    data = [_told(entry, name) for entry in service.models.loaded for name in entry.alphas]
    return JSONResponse({"object": "list", "data": data})


async def load_adapter(request: Request) -> Response:
    """Load a folder of the server's machine, or a bundled adapter by its name."""
    service: Service = request.app.state.service
    body = parse(AdapterBody, await request.body())
    entry = service.find(body.model)
    with entry.held() as model:
        async with service.heavy:
            name = await asyncio.to_thread(_load, model, body)
    return JSONResponse(_told(entry, name), 201)


async def remove_adapter(request: Request) -> Response:
    """Unload one; 409 while replies need it."""
    service: Service = request.app.state.service
    entry = service.find(request.query_params.get("model"))
    name: str = request.path_params["name"]
    if name not in entry.alphas:
        known = ", ".join(entry.alphas) or "none"
        told = f"no adapter {quoted(name)} is loaded: there are {known}"
        raise Refusal(404, told, param="name")
    with entry.held() as model:
        if count := model.in_use(name):
            raise Refusal(409, f"adapter {name} acts on {count} replies: wait until they end")
        await asyncio.to_thread(model.remove, name)
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


def _load(model: ServedModel, body: AdapterBody) -> str:
    here = Path(body.path)
    try:
        named = not here.exists() and body.path in bundled.ADAPTERS
        return model.add(bundled.adapter(body.path) if named else here, body.alpha)
    except OSError as error:  # a path that no file system takes, a file that may not be read
        told = f"{quoted(body.path)} cannot be read: {error.strerror or error}"
        raise invalid(told, "path") from error


def _told(entry: Entry, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "adapter",
        "model": entry.name,
        "alpha": entry.alphas[name],
        "in_use": entry.serving.in_use(name),
    }
