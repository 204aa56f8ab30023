"""What a request must pass, in order: Host, key, Origin, content type, size."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from cmc_local.server.guard import Guard, Policy
from cmc_local.server.limits import RequestLimits

JSON = {"content-type": "application/json"}


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body that it got."""
    message = await receive()
    assert not message["more_body"]
    await PlainTextResponse(message["body"] or b"empty")(scope, receive, send)


def client(limits: RequestLimits | None = None, **policy: Any) -> TestClient:
    guard = Guard(told, Policy(**policy), limits or RequestLimits())
    return TestClient(guard, base_url="http://localhost:8080")


def status(client: TestClient, method: str = "GET", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(method, "/", headers=named).status_code


def raw(guard: Guard, headers: list[tuple[bytes, bytes]], *messages: Message) -> list[Message]:
    """What is answered to a request made by hand; after the messages nothing comes any more."""
    coming, sent = list(messages), []

    async def receive() -> Message:
        if coming:
            return coming.pop(0)
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "[::1]:8080", "LOCALHOST.:80"])
def test_this_machine_by_any_of_its_names(host: str) -> None:
    assert status(client(), host=host) == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "192.168.0.7", "[::2]"])
def test_another_name_is_not_answered_to(host: str) -> None:
    answer = client().get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["error"]["message"]


def test_an_allowed_name_and_with_a_key_any_address() -> None:
    assert status(client(hosts=frozenset({"box.lan"})), host="box.lan:8080") == 200
    assert status(client(any_address=True), host="192.168.0.7:8080") == 200
    assert status(client(any_address=True), host="[fe80::1]") == 200
    assert status(client(any_address=True), host="evil.example") == 421


@pytest.mark.parametrize(
    "hosts", [[], [b"localhost", b"localhost"], [b"localhost", b"evil.example"], [b"a b"], [b""]]
)
def test_no_host_two_or_a_broken_one(hosts: list[bytes]) -> None:
    guard = Guard(told, Policy(), RequestLimits())
    sent = raw(guard, [(b"host", host) for host in hosts])
    assert sent[0]["status"] == 400


def test_the_key_as_bearer_or_as_a_browsers_password() -> None:
    locked = client(key="s3cret")
    basic = base64.b64encode(b"anyone:s3cret").decode()
    assert status(locked, authorization="Bearer s3cret") == 200
    assert status(locked, authorization=f"Basic {basic}") == 200
    for wrong in (
        "",
        "Bearer",
        "Bearer s3cre",
        "Bearer s3crets",
        "s3cret",
        "Basic !",
        "Basic YQ==",
    ):
        answer = locked.get("/", headers={"authorization": wrong})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert "s3cret" not in answer.text


def test_the_host_is_looked_at_before_the_key() -> None:
    assert status(client(key="s3cret"), host="evil.example") == 421


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: compared.append(pair) or real(*pair))
    status(client(key="s3cret"), authorization="Bearer other")
    assert compared == [(b"other", b"s3cret")]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8080", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_origins_may_not_ask(origin: str, expected: int) -> None:
    assert status(client(), origin=origin) == expected


@pytest.mark.parametrize(
    ("site", "mode", "expected"),
    [
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
        ("cross-site", "navigate", 200),
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),
    ],
)
def test_pictures_and_scripts_of_other_pages_get_nothing(
    site: str, mode: str, expected: int
) -> None:
    """Browsers send no Origin with them."""
    assert status(client(), sec_fetch_site=site, sec_fetch_mode=mode) == expected


def test_what_a_refusal_advises_can_be_done() -> None:
    told = client().get("/", headers={"host": "[fe80::1]:8080"}).json()["error"]["message"]
    assert told.endswith("--allow-host [fe80::1]")  # brackets, as the option wants them
    for origin in ("null", "file://", "chrome-extension://abc"):
        told = client().get("/", headers={"origin": origin}).json()["error"]["message"]
        assert "--allow-origin" not in told  # it takes none of these


def test_an_allowed_origin_may_ask_and_read() -> None:
    open_ = client(origins=frozenset({"https://app.example"}), key="k")
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = open_.options("/", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = open_.get("/", headers={"origin": asked["origin"], "authorization": "Bearer k"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["vary"] == "Origin"
    refused = open_.get("/", headers={"origin": asked["origin"]})  # its page may read why
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"


def test_a_preflight_of_another_origin_learns_nothing() -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client(origins=frozenset({"https://app.example"})).options("/", headers=asked)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_a_post_is_json(kind: str, expected: int) -> None:
    assert client().post("/", content=b"{}", headers={"content-type": kind}).status_code == expected


def test_a_packed_body_is_not_unpacked() -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    assert client().post("/", content=b"{}", headers=headers).status_code == 415


def test_a_large_body_is_refused_by_its_told_length_before_it_is_read() -> None:
    guard = Guard(told, Policy(), RequestLimits(body_bytes=10))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    for length in (b"11", b"9" * 30):
        assert raw(guard, [*headers, (b"content-length", length)])[0]["status"] == 413
    assert raw(guard, [*headers, (b"content-length", b"ten")])[0]["status"] == 400


def test_a_body_has_one_length() -> None:
    guard = Guard(told, Policy(), RequestLimits())
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    both = [(b"content-length", b"2"), (b"transfer-encoding", b"chunked")]
    sent = raw(guard, [*headers, *both])
    assert sent[0]["status"] == 400
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_large_body_is_refused_while_it_is_read() -> None:
    guard = Guard(told, Policy(), RequestLimits(body_bytes=10))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    part = {"type": "http.request", "body": b"123456", "more_body": True}
    assert raw(guard, headers, part, part)[0]["status"] == 413


def test_a_body_of_the_greatest_size_comes_whole() -> None:
    guard = Guard(told, Policy(), RequestLimits(body_bytes=10))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    part = {"type": "http.request", "body": b"12345", "more_body": True}
    sent = raw(guard, headers, part, {**part, "more_body": False})
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"1234512345")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    guard = Guard(told, Policy(), RequestLimits(read_seconds=0.05))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    part = {"type": "http.request", "body": b"1", "more_body": True}
    sent = raw(guard, headers, part)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_nobody_is_answered_who_left_within_the_body() -> None:
    guard = Guard(told, Policy(), RequestLimits())
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    assert raw(guard, headers, {"type": "http.disconnect"}) == []
