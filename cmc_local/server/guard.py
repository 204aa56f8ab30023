"""What a request must pass before anything else looks at it, as ASGI middleware. In this order:

    Host          one header that names this server, else 400 or 421: a page elsewhere cannot reach
                  it by a name of its own that it points here (DNS rebinding)
    API key       where there is one, on every route, compared in constant time, else 401
    Origin        this server's own or an allowed one, else 403; where a browser names none, what it
                  says of the page that asks: only to go to an address may another one have it ask
    Content-Type  JSON on every POST, else 415: a form on a page elsewhere cannot send it
    size          of the body, told or read, else 413; it comes in time, else 408

The body is read here and handed on whole. A browser's preflight for an allowed origin is answered
before the key is asked for, which it never carries.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmc_local.server.errors import Refusal
from cmc_local.server.limits import RequestLimits
from cmc_local.server.origins import LOOPBACK, is_address, parse_host, parse_origin

_CLOSE: Final = {"Connection": "close"}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who may ask."""

    hosts: frozenset[str] = LOOPBACK
    """Names and addresses that a Host header may have."""
    any_address: bool = False
    """Whether any IP address is as good: no page can make one point here."""
    origins: frozenset[str] = frozenset()
    """Origins of other pages that may ask, as browsers write them."""
    key: str | None = field(default=None, repr=False)


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, policy: Policy, limits: RequestLimits) -> None:
        self._app = app
        self._policy = policy
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin in self._policy.origins:
            send = _allowing(send, str(origin))
        try:
            self._check_host(headers)
            if (preflight := self._preflight(scope, headers)) is not None:
                await preflight(scope, receive, send)
                return
            self._check_key(headers)
            self._check_origin(headers)
            _check_content(scope, headers)
            body = await self._body(headers, receive)
        except Refusal as refused:
            await refused.response(scope["path"])(scope, receive, send)
            return
        except ConnectionResetError:  # gone before the body was whole: nobody to answer
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        host = parse_host(given[0]) if len(given) == 1 else None
        if host is None:
            raise Refusal(400, "the request needs one valid Host header", headers=_CLOSE)
        policy = self._policy
        if host.name in policy.hosts or (policy.any_address and is_address(host.name)):
            return
        name = f"[{host.name}]" if ":" in host.name else host.name
        told = f"this server does not answer to the host {name}: start it with"
        raise Refusal(421, f"{told} --allow-host {name}", code="host_not_allowed")

    def _preflight(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a browser that asks whether an allowed page may ask."""
        asked = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if not asked or headers.get("origin") not in self._policy.origins:
            return None
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
                "Access-Control-Max-Age": "600",
            },
        )

    def _check_key(self, headers: Headers) -> None:
        key = self._policy.key
        if key is None:
            return
        given = (
            _given_key(headers.get("authorization", "")) or headers.get("x-api-key", "").encode()
        )
        if not hmac.compare_digest(given, key.encode()):
            raise Refusal(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY or x-api-key: KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="cmc-local", charset="UTF-8"'},
            )

    def _check_origin(self, headers: Headers) -> None:
        given = headers.getlist("origin")
        if not given:
            self._check_site(headers)
            return
        if len(given) == 1 and given[0] in self._policy.origins:
            return
        if len(given) > 1 or (origin := parse_origin(given[0])) is None:
            raise _not_allowed("pages without an origin of their own may not ask this server")
        if origin != parse_host(headers["host"]):
            told = f"pages of {given[0]} may not ask this server: start it with --allow-origin"
            raise _not_allowed(f"{told} {given[0]}")

    def _check_site(self, headers: Headers) -> None:
        """Pictures and scripts are asked for without an Origin, for whatever page they are on."""
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if elsewhere and headers.get("sec-fetch-mode") != "navigate":
            raise _not_allowed("a page of another origin may not have this server asked")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self._limits.body_bytes
        if "transfer-encoding" in headers and "content-length" in headers:
            # Whoever stands between might take the other one for true (request smuggling).
            raise Refusal(400, "send Content-Length or Transfer-Encoding, not both", headers=_CLOSE)
        told = headers.get("content-length", "0")
        if not told.isascii() or not told.isdigit():
            raise Refusal(400, "Content-Length is no number", headers=_CLOSE)
        if len(told) > 18 or int(told) > most:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self._limits.read_seconds
            told = f"the body did not come within {seconds:g} seconds"
            raise Refusal(408, told, headers=_CLOSE) from None

    def _too_large(self) -> Refusal:
        told = f"the body is larger than {self._limits.body_bytes} bytes"
        return Refusal(413, told, code="body_too_large", headers=_CLOSE)


def _not_allowed(message: str) -> Refusal:
    return Refusal(403, message, code="origin_not_allowed")


def _given_key(authorization: str) -> bytes:
    """The key in an Authorization header; a browser sends it as the password of Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _check_content(scope: Scope, headers: Headers) -> None:
    if scope["method"] != "POST":
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "send JSON, with Content-Type: application/json")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "send the body as it is, without Content-Encoding")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message; then whatever else comes, which is the client's leaving."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _allowing(send: Send, origin: str) -> Send:
    """Tells the browser that a page of this origin may read the answer."""

    async def allowing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        await send(message)

    return allowing
