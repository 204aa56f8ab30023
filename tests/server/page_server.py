"""A server for the page that says what a test wrote down, when the test wants it.

Serves the page's own files and the wire format of `cmc-local serve`, without any model: timing,
errors after the start and tokens of parts of characters cannot be had from a real one at will.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import cmc_local

PAGE = Path(cmc_local.__file__).parent / "server" / "page"
ADAPTERS = [
    {"id": "instruct", "object": "adapter", "alpha": 1.0, "in_use": 0},
    {"id": "forget", "object": "adapter", "alpha": 0.0, "in_use": 0},
]
RATIOS = (100.0, 1.0, 0.1, 3.0)
"""How many times as likely steering makes the tokens of an answer, in turn."""

GONE = "ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET"
"""What a browser's console says of a server that was stopped."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What both columns answer to one question."""

    plain: str = "I am the model alone."
    steered: str = "I am steered."
    pause: float = 0.0
    """Seconds before each token."""
    thinking: str = ""
    split: bool = False
    """Tokens are single bytes: they end inside of characters."""
    status: int = 200
    error: str = ""
    """Comes after the last token, in place of the end."""


class PageServer:
    """One server on a free port of loopback, in a thread of its own; its address outlives it."""

    def __init__(self) -> None:
        self.reset()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def reset(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.asked: list[dict[str, Any]] = []
        """Bodies of the requests for answers, in the order they came."""
        self.cancelled = 0
        """Answers whose reader went away."""
        self.health = "ok"
        self.adapters = list(ADAPTERS)
        self.models: list[dict[str, Any]] = [{"id": "tiny+instruct"}, {"id": "tiny"}]
        self.loads = 0
        """Requests that are told to wait for their model."""

    def start(self) -> None:
        config = uvicorn.Config(self._app(), port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)

    def stop(self) -> None:
        """Breaks what is being answered, and refuses connections from now on."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def of(self, column: str) -> list[dict[str, Any]]:
        """What one column asked."""
        return [body for body in self.asked if (column == "steered") == bool(body["cmc"])]

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/adapters", self._adapters),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/{name:path}", self._file),
            ]
        )

    async def _file(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": "default-src 'self'"}
        return FileResponse(PAGE / (request.path_params["name"] or "index.html"), headers=headers)

    async def _health(self, request: Request) -> Response:
        status = 200 if self.health == "ok" else 503
        return JSONResponse({"status": self.health, "active": 0, "waiting": 0}, status)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models})

    async def _adapters(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.adapters})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        if self.loads:
            self.loads -= 1
            error = {"message": "it is being loaded", "code": "loading"}
            return JSONResponse({"error": error}, 503, {"Retry-After": "0.2"})
        self.asked.append(body)
        script = self.scripts.get(body["messages"][-1]["content"], Script())
        if script.status != 200:
            error = {"message": "32 requests are waiting", "type": "overloaded"}
            return JSONResponse({"error": error}, script.status)
        return StreamingResponse(self._stream(script, body), media_type="text/event-stream")

    async def _stream(self, script: Script, body: dict[str, Any]) -> AsyncIterator[bytes]:
        text = script.steered if body["cmc"] else script.plain
        try:
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            if script.thinking:
                delta = {"reasoning_content": script.thinking}
                yield event({"choices": [{"index": 0, "delta": delta}]})
            for chunk in chunks(text, script, plain_too=bool(body.get("cmc_plain"))):
                await asyncio.sleep(script.pause)
                yield chunk
            if script.error:
                yield event({"error": {"message": script.error, "type": "server_error"}})
                return
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


def event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\r\n\r\n".encode()


def chunks(text: str, script: Script, plain_too: bool) -> list[bytes]:
    """The events of a text: a token for each word with the space before it, or for each byte.

    A token that ends inside a character brings no text; the one that ends the character does.
    """
    pieces = [bytes([b]) for b in text.encode()] if script.split else words(text)
    held, found = b"", []
    for number, piece in enumerate(pieces):
        held += piece
        try:
            content, held = held.decode(), b""
        except UnicodeDecodeError:
            content = ""
        token = detail(piece, RATIOS[number % len(RATIOS)], plain_too)
        choice = {"index": 0, "delta": {"content": content}, "logprobs": {"content": [token]}}
        found.append(event({"choices": [choice]}))
    return found


def words(text: str) -> list[bytes]:
    """`a bc` -> `a`, ` bc`; a new line is a token of its own."""
    found: list[str] = []
    for word in text.replace("\n", " \n ").split(" "):
        first = not found or found[-1] == "\n" or word == "\n"
        found.append(word if first else f" {word}")
    return [word.encode() for word in found if word]


def detail(piece: bytes, ratio: float, plain_too: bool) -> dict[str, Any]:
    """An entry of logprobs.content: 0.6 is the likelier of before and after the shift."""
    after, before = 0.6 * min(1.0, ratio), 0.6 / max(1.0, ratio)

    def entry(token: bytes, probability: float) -> dict[str, Any]:
        name = token.decode(errors="replace")
        return {"token": name, "logprob": math.log(probability), "bytes": [*token]}

    others = [b" perhaps", b" certainly", b"\n", b" \xe6"]
    rest = [0.2, 0.05, 0.01, 0.0004]
    found = entry(piece, after)
    ranked = sorted([(after, piece), *zip(rest, others, strict=True)], reverse=True)
    found["top_logprobs"] = [entry(token, share) for share, token in ranked]
    if plain_too:
        was = [(before, piece), (0.05, b" otherwise"), *zip(rest, others, strict=True)]
        most = sorted(was, reverse=True)[:5]
        found["cmc"] = {
            "logprob": math.log(before),
            "top_logprobs": [entry(token, share) for share, token in most],
        }
    return found
