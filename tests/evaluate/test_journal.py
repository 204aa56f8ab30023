"""The journal of a measurement: it goes on where it stopped, and knows what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cmc_local.errors import DataError, InputError, UsageError
from cmc_local.evaluate.journal import Journal, fingerprint, journal_path

SETTINGS = {"task": "nll", "limit": 3}


class Counting:
    """Work that squares its items, notes them, and stops with an error at `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.done: list[int] = []
        self.stop = stop

    def __call__(self, items: Sequence[int]) -> Iterator[dict[str, Any]]:
        for item in items:
            if item == self.stop:
                raise KeyboardInterrupt
            self.done.append(item)
            yield {"square": item * item}


def begin(path: Path) -> None:
    """A journal of one value."""
    with Journal(path, SETTINGS) as journal:
        journal.values("plain", [1], Counting())


def test_a_stopped_measurement_goes_on_at_the_item_it_stopped_at(tmp_path: Path) -> None:
    path, first, second = tmp_path / "j.jsonl", Counting(stop=3), Counting()
    with pytest.raises(KeyboardInterrupt), Journal(path, SETTINGS) as journal:
        journal.values("plain", [1, 2, 3, 4], first)
    told: list[None] = []
    with Journal(path, SETTINGS) as journal:
        found = journal.values("plain", [1, 2, 3, 4], second, lambda: told.append(None))
    assert (first.done, second.done) == ([1, 2], [3, 4])
    assert [one["square"] for one in found] == [1, 4, 9, 16]
    assert len(told) == 4  # those kept too: a bar begins where it stopped


def test_parts_are_apart(tmp_path: Path) -> None:
    path, work = tmp_path / "j.jsonl", Counting()
    with Journal(path, SETTINGS) as journal:
        journal.values("plain", [1], work)
        journal.values("steered", [1, 2], work)
    with Journal(path, SETTINGS) as journal:
        journal.values("plain", [1], work)
        journal.values("steered", [1, 2], work)
    assert work.done == [1, 1, 2]


def test_a_last_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path, work = tmp_path / "j.jsonl", Counting()
    with Journal(path, SETTINGS) as journal:
        journal.values("plain", [1, 2], work)
    path.write_bytes(path.read_bytes()[:-4])
    with Journal(path, SETTINGS) as journal:
        assert journal.values("plain", [1, 2], work) == [{"square": 1}, {"square": 4}]
    assert work.done == [1, 2, 2]
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [one.get("item") for one in records] == [None, 0, 1]


def test_the_journal_of_other_settings_is_refused_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    begin(path)
    with pytest.raises(UsageError, match=r"j\.jsonl is the journal of another .*limit differs"):
        Journal(path, {**SETTINGS, "limit": 4})
    with pytest.raises(UsageError, match="seed differs"):
        Journal(path, {**SETTINGS, "seed": 1})
    Journal(path, {"limit": 3, "task": "nll"}).close()  # the order is no setting


def test_what_failed_before_its_first_value_does_not_hold_the_place(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {**SETTINGS, "lora": "wrong"}).close()
    with Journal(path, SETTINGS) as journal:
        journal.values("plain", [1], Counting())
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert records[0] == {"settings": SETTINGS} and len(records) == 2


@pytest.mark.parametrize("text", ["notes of mine", "notes\nof mine", '{"settings": "x"}\n{'])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match="journal"):
        Journal(path, SETTINGS)
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"part": "plain"}', '{"part": "plain", "item": 7, "value": {}}']
)
def test_a_line_that_is_none_of_a_journal_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    begin(path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"j\.jsonl:3 is no line of a journal"):
        Journal(path, SETTINGS)


def test_without_a_path_nothing_is_written() -> None:
    with Journal(None, SETTINGS) as journal:
        assert journal.values("plain", [3], Counting()) == [{"square": 9}]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another --output"):
        Journal(tmp_path / "file" / "j.jsonl", SETTINGS)


def test_the_journal_lies_beside_the_results() -> None:
    assert journal_path(Path("a/results.json")) == Path("a/results.journal.jsonl")


def test_files_of_one_size_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    other.write_bytes(b"abd")
    assert fingerprint(one)["bytes"] == fingerprint(other)["bytes"] == 3
    assert fingerprint(one) != fingerprint(other)
    with pytest.raises(InputError, match="cannot read"):
        fingerprint(tmp_path / "none")
