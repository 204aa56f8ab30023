"""Answers side by side on a terminal, drawn as they come. Imports rich.

    Column.write --> rows, wrapped to the column --> while they come: the last screenful
                                                 `-> at the end: all of them, once

The page that is redrawn never scrolls, so a long answer leaves one whole copy above the prompt.
Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from time import monotonic
from typing import Final

from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cmc_local.commands.terminal_text import figures, safe
from cmc_local.engine.timings import Timings

GAP: Final = " │ "
FRAME_SECONDS: Final = 0.05
"""Between two drawings; a fast model writes more often than a reader looks."""


class Column:
    """One answer, and the rows that it takes."""

    def __init__(self, label: str, page: Columns) -> None:
        self._label = safe(label)
        self._page = page
        self._thoughts = ""
        self._text = ""
        self._foot = ""
        self._width = 0
        self._rows: list[Text] = []
        """Of the paragraphs that are whole, which take up `_done` characters."""
        self._done = 0

    def think(self, text: str) -> None:
        self._thoughts += safe(text)
        self._page.draw(self)

    def write(self, text: str) -> None:
        self._text += safe(text if self._text else text.lstrip(" "))
        self._page.draw(self)

    def end(self, timings: Timings) -> None:
        self.foot(figures(timings))

    def foot(self, text: str) -> None:
        """End the answer with this line."""
        self._foot = text
        self._page.draw(self, at_once=True)

    def rows(self, width: int) -> list[Text]:
        """Thoughts, the answer and its figures, each row at most `width` cells."""
        paragraphs = self._thoughts.split("\n") if self._thoughts else ()
        thoughts = [row for one in paragraphs for row in wrapped(one, width, "dim")]
        return [*thoughts, *self._answer(width)]

    def _answer(self, width: int) -> list[Text]:
        if width != self._width:
            self._width, self._rows, self._done = width, [], 0
        *whole, last = self._text[self._done :].split("\n")
        for paragraph in whole:
            self._rows += wrapped(paragraph, width)
            self._done += len(paragraph) + 1
        if not self._foot:
            return [*self._rows, *wrapped(last, width)]
        end = wrapped(last, width) if last else []
        return [*self._rows, *end, *wrapped(self._foot, width, "dim")]

    def head(self, width: int) -> Text:
        """The label, in one row."""
        label = Text(self._label, "bold")
        label.truncate(width, overflow="ellipsis")
        return label


class Columns:
    """A page of columns, which is drawn while entered."""

    def __init__(self, labels: Sequence[str], console: Console | None = None) -> None:
        plain = bool(os.environ.get("NO_COLOR"))
        self._console = console or Console(color_system=None if plain else "auto")
        self._columns = [Column(label, self) for label in labels]
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Sequence[Column]:
        self._live.start()
        self.draw(self._columns[0])
        return self._columns

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._console.print(Group(*self._rows()))

    def draw(self, writing: Column, *, at_once: bool = False) -> None:
        """As many rows as there is room for, with the end of the column that is written to."""
        if monotonic() - self._drawn < FRAME_SECONDS and not at_once:
            return
        room = self._console.height - 2  # beside the labels, and the line above the page
        if room < 1:  # the page would scroll, and its labels would stay above it
            return
        end = max(len(writing.rows(self._width())), room)
        self._live.update(Group(*self._rows(end - room, end)), refresh=True)
        self._drawn = monotonic()

    def _width(self) -> int:
        gaps = len(GAP) * (len(self._columns) - 1)
        return (self._console.width - gaps) // len(self._columns)

    def _rows(self, begin: int = 0, end: int | None = None) -> list[Text]:
        """The labels, and the rows from `begin` to `end`."""
        width = self._width()
        bodies = (column.rows(width)[begin:end] for column in self._columns)
        rows = zip_longest(*bodies, fillvalue=Text())
        heads = [column.head(width) for column in self._columns]
        return [_joined(cells, width) for cells in (heads, *rows)]


def _joined(cells: Sequence[Text], width: int) -> Text:
    """One row of the page; the last cell is as short as it is."""
    row = Text()
    for cell in cells[:-1]:
        row.append(set_cell_size(cell.plain, width), cell.style).append(GAP, "dim")
    return row.append_text(cells[-1])


def wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """A paragraph in rows of at most `width` cells; a long word is cut, a wide character is not.

    >>> [row.plain.rstrip() for row in wrapped("to be or not", 5)]
    ['to be', 'or', 'not']
    """
    console = Console(width=width)  # rich asks one, for the width of a justified text
    return list(Text(text, style).wrap(console, width, overflow="fold"))
