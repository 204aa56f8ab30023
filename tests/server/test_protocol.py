"""What is answered before an application is asked: to no HTTP, and to one connection too many."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from cmc_local.server.protocol import Protocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that takes two connections and answers "ok" to all requests, bodies unread."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        PlainTextResponse("ok"), http=Protocol, ws="none", lifespan="off",
        limit_concurrency=2, log_config=None,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port: int, data: bytes) -> bytes:
    """All that is answered until the server closes, or for a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(data)
        told = b""
        client.settimeout(1)
        try:
            while part := client.recv(65536):
                told += part
        except TimeoutError:
            return told + b" still open"
    return told


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_openais_shape(port: int, data: bytes) -> None:
    head, _, body = ask(port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_nothing_is_said_in_the_middle_of_an_answer(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that turns out to be broken after it was answered."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(head)
        told = b""
        while not told.endswith(b"ok"):
            told += client.recv(65536)
        client.sendall(b"no chunk\r\n")
        assert client.recv(65536) == b""
    assert not [one for one in caplog.records if one.name == "asyncio"]  # an error of its own


def test_one_connection_too_many_is_turned_away(port: int) -> None:
    kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    time.sleep(0.1)
    head, _, body = ask(port, GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["error"]["code"] == "too_many_connections"
    kept.pop().close()
    time.sleep(0.1)
    assert ask(port, GET).startswith(b"HTTP/1.1 200 ")
    for one in kept:
        one.close()
