"""The switch that takes the network away; what it does to the command line is in test_hub.py."""

from __future__ import annotations

import socket

import pytest

from cmc_local import offline


def test_switched_off_the_network_is_refused_and_this_machine_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with offline.switched(on=True):
            assert offline.wanted()
            socket.create_connection(server.getsockname()).close()
            assert socket.getaddrinfo("localhost", 80)
            for host in ("192.0.2.1", "2001:db8::1", "models.example"):
                with pytest.raises(ConnectionRefusedError, match="is switched off") as error:
                    socket.create_connection((host, 80), timeout=0.01)
                assert error.value.filename == host
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
                pytest.raises(ConnectionRefusedError),
            ):
                datagram.sendto(b"x", ("192.0.2.1", 9))
        with pytest.raises(OSError, match=r"^(?!.*switched off)"):
            socket.getaddrinfo("models.invalid", 80)
