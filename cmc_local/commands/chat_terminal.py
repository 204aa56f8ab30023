"""What a chat is drawn on and read from: a terminal with line editing, or plain lines.

Answers go to stdout; everything else goes to stderr, dim where a terminal shows it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import platformdirs

from cmc_local.commands.chat_session import ChatSession, Pane
from cmc_local.commands.terminal_text import figures, safe
from cmc_local.engine.timings import Timings

WIDE: Final = 80
"""Columns of a terminal on which two answers stand side by side."""


class TerminalScreen:
    """Streams answers; Ctrl-C stops one, a second Ctrl-C at once."""

    def __init__(self) -> None:
        self._begun = False
        self._thinking = False
        self._interrupted = False
        self._before: Any = None
        self._held: list[str] | None = None
        """Notes that wait until two columns are drawn."""

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
        click.secho(safe(f"[{text}]"), err=True, bold=True)

    def think(self, text: str) -> None:
        self._thinking = True
        click.secho(safe(text), err=True, dim=True, nl=False)

    def write(self, text: str) -> None:
        self._end_thoughts()
        if not self._begun:
            text = text.lstrip(" ")
        self._begun = self._begun or bool(text)
        click.echo(safe(text), nl=False)

    def end(self, timings: Timings) -> None:
        self._end_thoughts()
        click.echo()
        self._begun = False
        click.secho(figures(timings), err=True, dim=True)

    def _end_thoughts(self) -> None:
        if self._thinking:
            click.echo("\n", err=True)
        self._thinking = False

    def note(self, text: str) -> None:
        if self._held is not None:
            self._held.append(text)
        else:
            click.secho(safe(text), err=True, dim=True)

    @contextlib.contextmanager
    def columns(self, labels: Sequence[str]) -> Iterator[Sequence[Pane] | None]:
        if not sys.stdout.isatty() or shutil.get_terminal_size().columns < WIDE:
            yield None
            return
        from cmc_local.commands.chat_columns import Columns

        self._held = []
        try:
            with Columns(labels) as columns:
                yield columns
        finally:
            held, self._held = self._held, None
            for text in held:
                self.note(text)


class LineScreen:
    """One line of stdout for each answer, when it is whole."""

    def __init__(self) -> None:
        self._label = ""
        self._parts: list[str] = []

    def cancelled(self) -> bool:
        return False

    def columns(self, labels: Sequence[str]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def label(self, text: str) -> None:
        self._label = f"[{text}] "

    def think(self, text: str) -> None:
        """A line is an answer."""

    def write(self, text: str) -> None:
        self._parts.append(text)

    def end(self, timings: Timings) -> None:
        click.echo(self._label + " ".join("".join(self._parts).split()))
        self._label = ""
        self._parts.clear()

    def note(self, text: str) -> None:
        click.echo(text, err=True)


def terminal_reader(session: ChatSession) -> Callable[[], str]:
    """Reads lines with editing, slash commands on Tab, and a history that stays."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    from cmc_local.commands.chat_completing import SlashCompleter

    place = Path(platformdirs.user_state_dir("cmc-local")) / "chat-history"
    history: History
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        history = FileHistory(str(place))
    except OSError:
        history = InMemoryHistory()
    prompt: PromptSession[str] = PromptSession(
        history=history,
        output=create_output(always_prefer_tty=True),
        enable_suspend=True,
        completer=SlashCompleter(session.completions),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
    return lambda: prompt.prompt("> ")


def line_reader() -> Callable[[], str]:
    """Reads lines from stdin."""

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    return read
