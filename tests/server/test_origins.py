"""Host and Origin headers, read strictly."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmc_local.server.origins import Host, is_address, parse_host, parse_origin

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,10}){0,3}", fullmatch=True)
PORTS = st.none() | st.integers(1, 65535)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", Host("localhost", None)),
        ("LOCALHOST.:8080", Host("localhost", 8080)),
        ("127.0.0.1:80", Host("127.0.0.1", 80)),
        ("[::1]:8080", Host("::1", 8080)),
        ("[0:0:0:0:0:0:0:1]", Host("::1", None)),
        ("[::FFFF:127.0.0.1]", Host("::ffff:7f00:1", None)),
    ],
)
def test_hosts_are_told_apart(text: str, host: Host) -> None:
    found = parse_host(text)
    if host.name.startswith("::ffff"):  # Python 3.13 writes such an address with dots
        assert found is not None
        assert IPv6Address(found.name) == IPv6Address(host.name)
    else:
        assert found == host


@pytest.mark.parametrize(
    "text",
    ["", ":80", "localhost:", "localhost:0", "localhost:65536", "localhost:８０", "::1", "[::1",
     "[::1%eth0]", "[1.2.3.4]", "user@localhost", "localhost/x", "localhost localhost", "a,b",
     "localhost\n", "[]:1", ".", "localhost:+80"],
)  # fmt: skip
def test_what_is_no_host_is_none(text: str) -> None:
    assert parse_host(text) is None


@given(NAMES, PORTS)
def test_a_name_and_a_port_come_back(name: str, port: int | None) -> None:
    text = name if port is None else f"{name}:{port}"
    assert parse_host(text.upper()) == Host(name, port)


@given(st.integers(0, 2**128 - 1), PORTS)
def test_every_spelling_of_an_ipv6_address_is_the_same_host(number: int, port: int | None) -> None:
    address, end = IPv6Address(number), "" if port is None else f":{port}"
    for spelling in (address.compressed, address.exploded, address.exploded.upper()):
        assert parse_host(f"[{spelling}]{end}") == Host(str(address), port)
    assert parse_host(str(address)) is None


@given(st.integers(0, 2**32 - 1))
def test_addresses_are_known_from_names(number: int) -> None:
    assert is_address(str(IPv4Address(number)))
    assert not is_address(f"{IPv4Address(number)}.example")


@given(st.text(st.characters(max_codepoint=0x17F), max_size=40))
@example("localhost:8080@evil.example")
def test_any_text_is_a_host_or_none(text: str) -> None:
    found = parse_host(text)
    if found is not None:
        assert not set(found.name) & set("/@#?[] \t\r\n\\,")
        assert text.lower().startswith((found.name, "["))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("http://localhost:8080", Host("localhost", 8080)),
        ("HTTPS://Example.org", Host("example.org", None)),
        ("http://[::1]:8080", Host("::1", 8080)),
        ("null", None),
        ("file://", None),
        ("http://localhost/", None),
        ("http://a@localhost", None),
        ("ftp://localhost", None),
    ],
)
def test_origins(text: str, host: Host | None) -> None:
    assert parse_origin(text) == host
