"""What a chat is drawn on and read from: a terminal with line editing, or plain lines.

Answers go to stdout; everything else goes to stderr, dim where a terminal shows it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
import platformdirs

from cmc_local.commands.chat_session import figures
from cmc_local.engine import Timings

_SAFE = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)
"""A model's words must not move the cursor or change the terminal's state."""


class TerminalScreen:
    """Streams answers; Ctrl-C stops one, a second Ctrl-C at once."""

    def __init__(self) -> None:
        self._begun = False
        self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> TerminalScreen:
        """While entered, Ctrl-C stops an answer instead of the program."""
        self._interrupted = False
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._begun:  # an error or a second Ctrl-C in the middle of an answer
            click.echo()
            self._begun = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def cancelled(self) -> bool:
        return self._interrupted

    def label(self, text: str) -> None:
        click.secho(f"[{text}]", err=True, bold=True)

    def write(self, text: str) -> None:
        if not self._begun:
            text = text.lstrip(" ")
        self._begun = self._begun or bool(text)
        click.echo(text.translate(_SAFE), nl=False)

    def end(self, timings: Timings) -> None:
        click.echo()
        self._begun = False
        click.secho(figures(timings), err=True, dim=True)

    def note(self, text: str) -> None:
        click.secho(text, err=True, dim=True)


class LineScreen:
    """One line of stdout for each answer, when it is whole."""

    def __init__(self) -> None:
        self._label = ""
        self._parts: list[str] = []

    def cancelled(self) -> bool:
        return False

    def label(self, text: str) -> None:
        self._label = f"[{text}] "

    def write(self, text: str) -> None:
        self._parts.append(text)

    def end(self, timings: Timings) -> None:
        click.echo(self._label + " ".join("".join(self._parts).split()))
        self._label = ""
        self._parts.clear()

    def note(self, text: str) -> None:
        click.echo(text, err=True)


def terminal_reader() -> Callable[[], str]:
    """Reads lines with editing and a history that the next chat remembers."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output

    place = Path(platformdirs.user_state_dir("cmc-local")) / "chat-history"
    history: History
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        history = FileHistory(str(place))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        history=history, output=create_output(always_prefer_tty=True), enable_suspend=True
    )
    return lambda: session.prompt("> ")


def line_reader() -> Callable[[], str]:
    """Reads lines from stdin."""

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    return read
