"""Files written whole or not at all: what a reader meets, and what a failure leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cmc_local import files
from cmc_local.errors import InputError


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with files.whole(path) as part:
        part.write_bytes(b"half")
        assert not path.exists()
        part.write_bytes(b"whole")
    files.write_text(path.with_name("text"), "ä\n")
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == {
        "file.txt": b"whole",
        "text": b"\xc3\xa4\n",
    }


def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    path = tmp_path / "file.txt"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"file\.txt \(no space\): choose another"):
        files.write_bytes(path, b"new", "choose another")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file.txt", b"before")]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write"):
            files.write_json(path, {})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    files.write_json(tmp_path / "r.json", ["a\ud83d"])
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == ["a?"]


def test_the_cache_folder_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CMC_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    monkeypatch.delenv("CMC_CACHE")
    assert files.cache_folder().name == "cmc-local"
