"""The progress bar: on a terminal alone, and gone when it is done."""

from __future__ import annotations

import io
import sys

import pytest

from cmc_local.commands.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_is_drawn_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], shown: bool
) -> None:
    errors = stream()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    with progress(3, "rows") as told:
        told()
    assert ("rows" in errors.getvalue() and "1/3" in errors.getvalue()) == shown
    assert (errors.getvalue() == "") == (not shown)
