"""Errors in OpenAI's shape: status, message, type, param, code; Anthropic's under /messages.

{"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": null}}
{"type": "error", "error": {"type": "invalid_request_error", "message": "..."}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from cmc_local.errors import (
    CmcError,
    InputError,
    ModelClosed,
    Overloaded,
    PromptTooLong,
    UsageError,
    WaitedTooLong,
)

RETRY_SECONDS: Final = 2
"""When a client that was turned away may come back."""

_MOST_CHARACTERS: Final = 500
"""How long a message may be: it may quote what the client sent."""

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {**_TYPES, 413: "request_too_large", 503: "overloaded_error"}


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_line(message))
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def anthropic_body(self) -> dict[str, Any]:
        """The JSON object as Anthropic's clients expect it."""
        usual = "api_error" if self.status >= 500 else "invalid_request_error"
        kind = _ANTHROPIC_TYPES.get(self.status, usual)
        return {"type": "error", "error": {"type": kind, "message": str(self)}}

    def response(self, path: str = "") -> Response:
        """The answer, in the shape of the protocol that has this path."""
        is_anthropic = path.removeprefix("/v1").startswith("/messages")
        body = self.anthropic_body() if is_anthropic else self.body()
        return JSONResponse(body, self.status, self.headers)


def quoted(text: str) -> str:
    """What a client sent, as it stands in a message: in quotes, one line, cut where it is long."""
    most = 80
    return repr(text if len(text) <= most else text[:most] + "...")


def _line(message: str) -> str:
    """A message as one line: it may hold what stands in a file, or in a path."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."


def invalid(message: str, param: str | None, code: str | None = None) -> Refusal:
    """400: a value that cannot be used, and which."""
    return Refusal(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> Refusal:
    """503: not now."""
    return Refusal(503, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def queue_full(message: str) -> Refusal:
    """429: too much is waiting already."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return Refusal(429, message, code="queue_full", headers=headers)


def refusal(error: CmcError, *, param: str | None = None) -> Refusal:
    """How an error of the library is answered; `param` is what a bad prompt was given as."""
    match error:
        case PromptTooLong():
            return invalid(str(error), param, "context_length_exceeded")
        case UsageError() | InputError():
            return invalid(str(error), None)
        case WaitedTooLong():
            return unavailable(str(error), "waited_too_long")
        case Overloaded():
            return queue_full(str(error))
        case ModelClosed():
            return unavailable(str(error), "stopped")
        case _:
            return Refusal(500, str(error))


def internal() -> Refusal:
    """500: a fault of the server, whose traceback is in its log and stays there."""
    return Refusal(500, "internal error: see the server's log")
