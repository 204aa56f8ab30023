"""docs/design.md and CONTRIBUTING.md speak of the tree as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = (REPOSITORY, REPOSITORY / "cmc_local")


def test_the_picture_of_the_rooms_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "docs"), *sys.path])
    import draw_rooms

    page = draw_rooms.PAGE.read_text(encoding="utf-8")
    assert draw_rooms.with_drawing(page) == page, "run `python docs/draw_rooms.py`"
    assert "steer  " in draw_rooms.drawing()


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(page: str) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (REPOSITORY / page).read_text(encoding="utf-8")))
    assert named
    assert not {one for one in named if not any((root / one).is_file() for root in ROOTS)}
