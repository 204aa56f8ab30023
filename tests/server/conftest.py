"""A server on a base model of five tokens, asked without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.small import Small

Served = Callable[..., Small]


@pytest.fixture
def served() -> Iterator[Served]:
    """Makes servers, and ends them after the test."""
    made: list[Small] = []

    def make(*args: Any, **settings: Any) -> Small:
        made.append(Small(*args, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def client(served: Served) -> TestClient:
    """The client of a server that answers "a" until it may not go on."""
    return served().client
