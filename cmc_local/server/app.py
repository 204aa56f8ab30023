"""The server as an ASGI application: routes, and what stands before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cmc_local.errors import CmcError
from cmc_local.server.adapters import list_adapters, load_adapter, remove_adapter
from cmc_local.server.chat import chat
from cmc_local.server.completions import completions
from cmc_local.server.embeddings import embeddings
from cmc_local.server.errors import Refusal, internal, refusal
from cmc_local.server.guard import Guard, Policy
from cmc_local.server.health import health, metrics, props
from cmc_local.server.messages import count_tokens, messages
from cmc_local.server.models import list_models, one_model
from cmc_local.server.observing import Observed
from cmc_local.server.pages import page, page_files
from cmc_local.server.responses import one_response, remove_response, responses
from cmc_local.server.service import Service
from cmc_local.server.texts import detokenize, tokenize, tokenizer_info

Endpoint = Callable[[Request], Awaitable[Response]]


def application(service: Service, policy: Policy) -> ASGIApp:
    """The application of one server."""
    handlers: dict[Any, Any] = {
        Refusal: _refused,
        CmcError: _failed,
        HTTPException: _no_route,
        Exception: _fault,
    }
    app = Starlette(routes=_routes(), exception_handlers=handlers)
    app.state.service = service
    return Observed(Guard(app, policy, service.limits), service.metrics)


def _routes() -> list[Route]:
    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/embeddings": embeddings,
        "/v1/responses": responses,
        "/v1/messages": messages,
        "/v1/messages/count_tokens": count_tokens,
        "/v1/adapters": load_adapter,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
    }
    gets: dict[str, Endpoint] = {
        "/v1/models": list_models,
        "/v1/models/{name:path}": one_model,
        "/v1/adapters": list_adapters,
        "/v1/responses/{name}": one_response,
        "/health": health,
        "/props": props,
        "/tokenizer_info": tokenizer_info,
        "/metrics": metrics,
        **dict.fromkeys(page_files(), page),
    }
    routes: list[tuple[str, Endpoint, str]] = [
        *((path, endpoint, "POST") for path, endpoint in posts.items()),
        *((path, endpoint, "GET") for path, endpoint in gets.items()),
        ("/v1/adapters/{name}", remove_adapter, "DELETE"),
        ("/v1/responses/{name}", remove_response, "DELETE"),
    ]
    # With and without /v1, as llama-server has them.
    others = [(one[0].removeprefix("/v1"), *one[1:]) for one in routes if one[0].startswith("/v1/")]
    routes += [*others, ("/v1/health", health, "GET")]
    return [Route(path, endpoint, methods=[method]) for path, endpoint, method in routes]


async def _refused(request: Request, error: Refusal) -> Response:
    return error.response(request.url.path)


async def _failed(request: Request, error: CmcError) -> Response:
    return refusal(error).response(request.url.path)


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:100]
    known = "see /v1/models, /v1/chat/completions, /v1/completions"
    told = {
        404: f"there is nothing at {path!r}: {known}",
        405: f"{path!r} does not take {request.method}",
    }
    message = told.get(error.status_code, str(error.detail))
    return Refusal(error.status_code, message, headers=error.headers).response(path)


async def _fault(request: Request, _error: Exception) -> Response:
    return internal().response(request.url.path)
