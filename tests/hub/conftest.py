"""A hub on loopback, which the environment names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, running


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub; its cache is in `tmp_path`."""
    with running(monkeypatch, tmp_path) as hub:
        yield hub
