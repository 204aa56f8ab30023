"""What a long measurement has found so far, kept so that the same command goes on after a stop.

    {"settings": {...}}                                       first line: what was asked for
    {"part": "instruct=1", "item": 0, "value": {...}}         then a line for each finished item

Knows parts, numbers and JSON values; nothing of models. A last line that was cut off is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from cmc_local.errors import DataError, InputError, UsageError
from cmc_local.lifetime import Closing

Item = TypeVar("Item")
Value = dict[str, Any]
"""What is known of one item when it is done; JSON."""
Work = Callable[[Sequence[Item]], Iterator[Value]]
"""Items -> a value for each, in order."""
Progress = Callable[[], None]

END_BYTES = 16 << 20


class Journal(Closing):
    """The finished items of one measurement; a context manager. Without a path, in memory only."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Open or begin the journal at `path`.

        Raises UsageError where it is of other settings, DataError where it is none.
        """
        self._values: dict[str, list[Value]] = {}
        self._file: IO[str] | None = None
        self._head: list[Value] = []
        if path is None:
            return
        settings = json.loads(json.dumps(settings))  # as it will be read back
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = _finished(path)
            self._values = _read(path, lines, settings)
            cut_unfinished(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {path} ({reason}): give another --output") from None
        # Written with the first value: what fails before has measured nothing to go on with.
        self._head = [] if lines else [{"settings": settings}]

    def values(
        self, part: str, items: Sequence[Item], work: Work[Item], progress: Progress = lambda: None
    ) -> list[Value]:
        """A value for each item: those kept, then what `work` makes of the others.

        `progress` is called for each of them as soon as it is there.
        """
        kept = self._values.setdefault(part, [])
        for _ in kept:
            progress()
        for value in work(items[len(kept) :]):
            self._write({"part": part, "item": len(kept), "value": value})
            kept.append(value)
            progress()
        assert len(kept) == len(items), "work gives a value for each item"
        return list(kept)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            for one in (*self._head, line):
                self._file.write(json.dumps(one, ensure_ascii=False) + "\n")
            self._head = []
            self._file.flush()


def journal_path(output: Path) -> Path:
    """Where the journal of a results file lies: `results.json` -> `results.journal.jsonl`."""
    return output.with_name(f"{output.stem}.journal.jsonl")


def fingerprint(path: Path) -> dict[str, Any]:
    """Enough of a file to tell it from another: size, and sha256 of its first and last 16 MiB."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(END_BYTES))
            size = path.stat().st_size
            file.seek(max(size - END_BYTES, 0))
            digest.update(file.read(END_BYTES))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}: give a file") from None
    return {"bytes": size, "sha256": digest.hexdigest()}


def finished_lines(path: Path) -> list[str]:
    """The finished lines of JSON of a file that may be absent, without what follows the last one.

    Raises OSError, and ValueError for what no JSONL file is: other bytes than UTF-8, or an
    unfinished line that begins no object.
    """
    if not path.exists():
        return []
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest and not rest.startswith(b"{"):
        raise ValueError("the last line begins no JSON object")
    return whole.decode("utf-8").split("\n") if newline else []


def cut_unfinished(path: Path) -> None:
    """Cut off what follows the last newline of a file that may be absent; raises OSError."""
    if not path.exists():
        return
    end = path.read_bytes().rfind(b"\n") + 1
    if end < path.stat().st_size:
        os.truncate(path, end)


def _finished(path: Path) -> list[str]:
    try:
        return finished_lines(path)
    except ValueError:
        raise DataError(f"{path} is no journal: delete it, or give another --output") from None


def _read(path: Path, lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if number == 1:
                _same(path, record["settings"], settings)
                continue
            values = found.setdefault(record["part"], [])
            if record["item"] != len(values) or not isinstance(record["value"], dict):
                raise ValueError
            values.append(record["value"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(
                f"{path}:{number} is no line of a journal: delete the file, or give another "
                "--output"
            ) from None
    return found


def _same(path: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    names = dict.fromkeys((*asked, *kept))
    other = next((name for name in names if kept.get(name) != asked.get(name)), None)
    if other is not None:
        raise UsageError(
            f"{path} is the journal of another measurement ({other} differs): "
            "give another --output, or delete the journal to measure anew"
        )
