"""A real `cmc-local serve`: its socket, signals, the end, and what it is refused for."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where does Flora Whitemark live?"}],
    "max_tokens": 1500,
    "cmc": [],
    "logit_bias": {"0": -100, "1": -100, "2": -100},
}
"""A reply of a second or more: the tokens that end one are forbidden."""
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")


class Server:
    """The process, and requests to it."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cmc_local", "serve", "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)/v1", line)
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=20)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        connection = self.connect()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def post(
        self, body: dict[str, Any], connection: http.client.HTTPConnection | None = None
    ) -> http.client.HTTPResponse:
        connection = connection or self.connect()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        return connection.getresponse()

    def until(self, status: str, seconds: float = 20.0) -> dict[str, Any]:
        """The health that first says so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.get("/health")[1]
            if told["status"] == status:
                return dict(told)
            time.sleep(0.02)
        raise AssertionError(f"never {status}")

    def end(self, seconds: float = 10.0) -> tuple[int, str]:
        """The exit code and what stderr says."""
        _, told = self.process.communicate(timeout=seconds)
        return self.process.returncode, told

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(bundled_models: Path) -> Iterator[Server]:
    one = Server("--context", "4096", "--parallel", "2")
    yield one
    one.close()


@pytest.fixture(scope="module")
def lasting(bundled_models: Path) -> Iterator[Server]:
    """One for all tests that leave it as it is."""
    one = Server("--gguf", "larger", "--parallel", "2", "--context", "4096")
    one.until("ok")
    yield one
    one.close()


@posix
def test_the_first_signal_lets_replies_end_and_refuses_new_ones(server: Server) -> None:
    server.until("ok")
    kept = server.connect()  # a connection that was there before
    kept.request("GET", "/health")
    kept.getresponse().read()
    stream = server.post({**LONG, "stream": True, "max_tokens": 800})
    assert stream.status == 200
    stream.readline()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    refused = server.post(LONG, kept)
    assert (refused.status, refused.getheader("retry-after")) == (503, "2")
    assert json.loads(refused.read())["error"]["code"] == "draining"
    with pytest.raises(OSError):
        server.connect().connect()
    rest = stream.read()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert b'"finish_reason":"length"' in rest or b'"finish_reason":"stop"' in rest
    code, told = server.end()
    assert code == 0
    assert "a second signal" in told and "Traceback" not in told


@posix
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(bundled_models: Path, kind: signal.Signals) -> None:
    server = Server("--context", "4096")
    try:
        server.until("ok")
        stream = server.post({**LONG, "stream": True, "n": 8})
        stream.readline()
        server.process.send_signal(kind)
        time.sleep(0.2)
        assert server.process.poll() is None
        begun = time.monotonic()
        server.process.send_signal(kind)
        code, told = server.end(5)
        assert time.monotonic() - begun < 1.0
        assert code == 128 + kind
        assert "Traceback" not in told
    finally:
        server.close()


@posix
def test_a_signal_with_nothing_under_way_ends_the_server(server: Server) -> None:
    server.until("ok")
    server.process.send_signal(signal.SIGINT)
    code, told = server.end(5)
    assert code == 0
    assert "Traceback" not in told


LOADS_FOR_EVER = """
import sys, time
from cmc_local.server.guard import Policy
from cmc_local.server.running import listen, serve
from cmc_local.server.served import Entry, Models
from cmc_local.server.service import Service
listening = listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
models = Models([Entry(name="m", load=lambda: time.sleep(600))])
serve(Service(models=models), Policy(), listening, ready=lambda: None)
"""


@posix
def test_while_the_model_is_loaded_the_server_says_so_and_can_be_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS_FOR_EVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()))
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (503, {"status": "loading"})
        body = json.dumps({"messages": [{"role": "user", "content": "a"}]})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert json.loads(answer.read())["error"]["code"] == "loading"
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_a_line(
    tmp_path: Path, bundled_models: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((bundled_models / "larger.gguf").read_bytes()[:100_000])
    server = Server("--gguf", str(broken))
    code, told = server.end()
    assert code == 1
    lines = [line for line in told.splitlines() if "cmc-local: error:" in line]
    assert len(lines) == 1
    assert "broken.gguf" in lines[0] and "Traceback" not in told


def test_a_client_that_leaves_is_forgotten(lasting: Server) -> None:
    for body in ({**LONG, "stream": True}, {**LONG, "stream": False}):
        connection = lasting.connect()
        connection.connect()
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        end = time.monotonic() + 5
        while not lasting.get("/health")[1]["active"]:
            assert time.monotonic() < end
        connection.sock.close()
        time.sleep(1.0)
        assert lasting.get("/health")[1]["active"] == 0


def test_both_loopbacks_names_are_answered_to_and_no_other(lasting: Server) -> None:
    assert lasting.get("/health", Host=f"localhost:{lasting.port}")[0] == 200
    assert lasting.get("/health", Host="[::1]")[0] == 200
    assert lasting.get("/health", Host="evil.example")[0] == 421


def test_texts_are_embedded(lasting: Server) -> None:
    connection = lasting.connect()
    body = json.dumps({"input": ["Flora Whitemark", "Flora Whitemark", "Castlestead"]})
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    told = json.loads(connection.getresponse().read())
    one, same, other = (entry["embedding"] for entry in told["data"])
    assert one == same != other
    assert sum(number * number for number in one) == pytest.approx(1.0, abs=1e-4)
    assert told["usage"]["prompt_tokens"] > 3


def test_a_damaged_adapter_is_refused_by_name(lasting: Server, tmp_path: Path) -> None:
    connection = lasting.connect()
    body = json.dumps({"path": str(tmp_path)})
    connection.request("POST", "/v1/adapters", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 400
    assert str(tmp_path) in json.loads(answer.read())["error"]["message"]


def test_an_adapter_comes_acts_and_goes(lasting: Server) -> None:
    connection = lasting.connect()
    body = json.dumps({"path": "forget", "alpha": 0.5})
    connection.request("POST", "/v1/adapters", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    assert (answer.status, told) == (
        201,
        {"id": "forget", "object": "adapter", "model": "larger", "alpha": 0.5, "in_use": 0},
    )
    models = [one["id"] for one in lasting.get("/v1/models")[1]["data"]]
    assert models == ["larger+instruct+forget", "larger", "larger+instruct", "larger+forget"]
    connection.request("DELETE", "/v1/adapters/forget")
    assert connection.getresponse().status == 200


def test_a_head_that_does_not_come_whole_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cmc_local.server import running
    from cmc_local.server.limits import RequestLimits
    from cmc_local.server.served import Entry, Models
    from cmc_local.server.service import Service

    class Connection:
        cycle = None
        aborted = False
        transport = property(lambda self: self)

        def abort(self) -> None:
            self.aborted = True

    import uvicorn

    now = 100.0
    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    service = Service(models=Models([Entry(name="tiny")]), limits=RequestLimits(read_seconds=30))
    server = running._Server(uvicorn.Config(lambda: None), service, None)  # type: ignore[arg-type]
    silent, busy = Connection(), Connection()
    busy.cycle = type("Cycle", (), {"response_complete": False})()  # type: ignore[assignment]
    server.server_state.connections |= {silent, busy}  # type: ignore[arg-type]
    server._drop_silent()
    now = 129.0
    server._drop_silent()
    assert not silent.aborted
    now = 131.0
    server._drop_silent()
    assert silent.aborted and not busy.aborted


def test_ipv6_has_a_socket_of_its_own(bundled_models: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = Server("--host", "::1")
    try:
        assert server.host == "::1"
        assert server.get("/health")[0] in (200, 503)
    finally:
        server.close()
