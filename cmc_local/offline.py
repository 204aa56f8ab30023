"""A switch that takes the network away from this process: `--offline`, or HF_HUB_OFFLINE=1.

    with offline.switched(on=True):
        ...                          # looking up a name or connecting elsewhere is refused

It holds for whatever Python code runs, libraries included, by an audit hook on the socket module;
child processes and other libraries of the hub learn it from the environment. Connections within
this machine stay possible, so that a server can be reached. It knows nothing of who asks, or of
sockets that native code opens on its own.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

VARIABLE: Final = "HF_HUB_OFFLINE"
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
_WITH_ADDRESS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_WITH_NAME: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
_BACKWARDS: Final = frozenset({"socket.gethostbyaddr", "socket.getnameinfo"})

_refusing = False
_hooked = False


def wanted() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE, "").upper() in _TRUE


@contextmanager
def switched(*, on: bool) -> Iterator[None]:
    """Refuse the network inside of the block, if `on`; ConnectionRefusedError names the host."""
    global _refusing, _hooked
    if not on:
        yield
        return
    if not _hooked:  # a hook cannot be taken away again
        sys.addaudithook(_watch)
        _hooked = True
    before, said = _refusing, os.environ.get(VARIABLE)
    _refusing, os.environ[VARIABLE] = True, "1"
    try:
        yield
    finally:
        _refusing = before
        if said is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = said


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refusing or not event.startswith("socket."):
        return
    if event in _WITH_ADDRESS:
        address = arguments[1]
        if isinstance(address, tuple) and address and isinstance(address[0], str):
            _refuse_unless(_is_here(address[0]), address[0])
    elif event in _WITH_NAME:
        host = arguments[0]
        _refuse_unless(host is None or _is_here(host) or _is_number(host), host)
    elif event in _BACKWARDS:
        host = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        _refuse_unless(_is_here(host), host)


def _refuse_unless(allowed: bool, host: str | bytes) -> None:
    if not allowed:
        place = host.decode(errors="replace") if isinstance(host, bytes) else host
        told = f"the network is switched off (--offline or {VARIABLE})"
        raise ConnectionRefusedError(errno.ECONNREFUSED, told, place)


def _is_here(host: str | bytes) -> bool:
    """Whether a host is this machine, without asking anybody."""
    number = _address(host)
    return host in ("localhost", b"localhost", "") or (number is not None and number.is_loopback)


def _is_number(host: str | bytes) -> bool:
    return _address(host) is not None


def _address(host: str | bytes) -> Any:
    import ipaddress

    text = host.decode(errors="replace") if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
