"""Answers side by side: what a terminal shows, row by row."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from cmc_local.commands import chat_columns
from cmc_local.commands.chat_columns import Columns, wrapped
from cmc_local.engine.timings import Timings


def console(width: int = 23, height: int = 5) -> Console:
    """A terminal of 23 columns: two of 10, and the gap of three between them."""
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )


def written(page: Console) -> str:
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue()


def at_the_end(*texts: str, width: int = 23) -> list[str]:
    """The rows that stay: what follows the last control sequence."""
    page = console(width)
    with Columns(["plain", "bee 1"], page) as columns:
        for column, text in zip(columns, texts, strict=True):
            column.write(text)
    return written(page).rpartition("\x1b[2K")[2].splitlines()


def test_each_answer_has_its_column() -> None:
    assert at_the_end("to be or not to be", "yes") == [
        "plain      │ bee 1",
        "to be or   │ yes",
        "not to be  │ ",
    ]


def test_a_long_word_is_cut_and_a_wide_character_is_not() -> None:
    # "日" takes two cells: four of them and one letter are nine, the fifth does not fit the tenth.
    assert at_the_end("a日日日日日b", "x" * 12) == [
        "plain      │ bee 1",
        "a日日日日  │ xxxxxxxxxx",
        "日b        │ xx",
    ]
    assert all(cell_len(row) <= 23 for row in at_the_end("日" * 40, "日" * 41))


def test_paragraphs_and_spaces_stay_and_the_first_space_goes() -> None:
    assert [row.rstrip() for row in at_the_end("  a\n\n  b\tc", "")] == [
        "plain      │ bee 1",
        "a          │",
        "           │",
        "  b     c  │",
    ]


def test_thoughts_stand_above_the_answer() -> None:
    page = console()
    with Columns(["plain", "bee 1"], page) as columns:
        columns[0].think("one two")
        columns[0].think(" three")
        columns[0].write("four")
    assert written(page).rpartition("\x1b[2K")[2].splitlines() == [
        "plain      │ bee 1",
        "one two    │ ",
        "three      │ ",
        "four       │ ",
    ]


def test_a_label_takes_one_row() -> None:
    page = console()
    with Columns(["plain", "instruct 1 + forget 2"], page):
        pass
    assert "plain      │ instruct …\n" in written(page)


def test_what_moves_the_cursor_is_not_drawn() -> None:
    assert at_the_end("a\x1b[2Jb\r", "\x9b1A")[1] == "a\ufffd[2Jb\ufffd    │ \ufffd1A"


def test_figures_stand_below_an_answer_without_an_empty_row() -> None:
    page = console(width=140)
    with Columns(["plain", "bee 1"], page) as (left, _right):
        left.write("a\n")
        left.end(Timings(generated_tokens=1, total_seconds=0.5))
    rows = written(page).rpartition("\x1b[2K")[2].splitlines()
    assert [row.partition("│")[0].rstrip() for row in rows] == [
        "plain",
        "a",
        "1 tokens, 2.0 tokens/s; base 0% of the time, delta 0%",
    ]


def test_while_it_comes_the_end_of_the_answer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_columns, "FRAME_SECONDS", 0.0)
    page = console(height=5)
    with Columns(["plain", "bee 1"], page) as (left, right):
        for number in range(8):
            left.write(f"{number}\n")
        # Five rows: the line above, the labels, three rows of text; the last of these is begun.
        last = written(page).rpartition("\x1b[2K")[2].splitlines()
        assert [row.partition("│")[0].strip() for row in last] == ["plain", "6", "7", ""]
        right.write("a")
        last = written(page).rpartition("\x1b[2K")[2].splitlines()
        assert [row.strip() for row in last[1:]] == [
            "0          │ a",
            "1          │",
            "2          │",
        ]


def test_a_page_without_room_to_be_redrawn_is_written_once_at_the_end() -> None:
    page = console(height=2)  # the labels and one row would fill it, and scroll
    with Columns(["plain", "bee 1"], page) as (left, _right):
        left.write("to be or not")
        left.foot("done")
    assert written(page).count("plain") == 1


def test_an_error_leaves_what_was_written() -> None:
    page = console()
    with pytest.raises(ZeroDivisionError), Columns(["plain", "bee 1"], page) as (left, _right):
        left.write("so far")
        raise ZeroDivisionError
    assert "so far     │ \n" in written(page)
    assert written(page).rstrip().endswith("│") and "\x1b[?25h" in written(page)


def test_the_rows_of_whole_paragraphs_are_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        chat_columns, "wrapped", lambda text, *rest: seen.append(text) or wrapped(text, *rest)
    )
    left, _right = Columns(["plain", "bee 1"], console())._columns
    for text in ("one\ntw", "o\n", "three"):
        left._text += text
        shown = [row.plain for row in left.rows(10)]
    assert shown == ["one", "two", "three"]
    assert seen.count("one") == 1
    assert [row.plain for row in left.rows(4)] == ["one", "two", "thre", "e"]
