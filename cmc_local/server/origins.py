"""Host and Origin headers: which names this server answers to.

>>> parse_host("LocalHost:8080"), parse_host("[::1]"), parse_host("a b")
(Host(name='localhost', port=8080), Host(name='::1', port=None), None)
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)", re.IGNORECASE)


class Host(NamedTuple):
    """A host name in lower case, or an address without brackets, and the port if one is named."""

    name: str
    port: int | None


def parse_host(text: str) -> Host | None:
    """What a Host header says; None for what is none.

    IPv6 addresses are written in their shortest form; a name's final dot goes.
    """
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    port = None if match[3] is None else int(match[3])
    if port is not None and not 0 < port <= 65535:
        return None
    if match[1] is None:
        name = match[2].lower().removesuffix(".")
        return Host(name, port) if name else None
    try:
        return Host(str(IPv6Address(match[1])), port)
    except ValueError:
        return None


def is_address(name: str) -> bool:
    """Whether a parsed host is an IP address rather than a name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def parse_origin(text: str) -> Host | None:
    """The host of an http or https origin; None for `null` and for what is none."""
    match = _ORIGIN.fullmatch(text)
    return None if match is None else parse_host(match[2])
