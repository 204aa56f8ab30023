"""Where `cmc-local generate` writes: stdout, a new file, or one that holds answers already.

A file with something in it is never written over by mistake: --resume keeps its answers and goes on
behind them, --overwrite begins anew. A row's answer is the row itself with the fields `GAINED`, and
"thinking" where the model marked thoughts.
Where one row's error does not end the run (--ray), its "response" is null, its "finish_reason" is
"error", and "error" says why.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from cmc_local.errors import DataError, InputError, UsageError
from cmc_local.evaluate.journal import cut_unfinished, finished_lines

GAINED: Final = ("response", "finish_reason", "tokens", "seconds")


def target(output: str | None, source: str | None, *, resume: bool, overwrite: bool) -> Path | None:
    """The file to write, None for stdout; UsageError for one that would be lost."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: give one of them")
    if output is None or output == "-":
        if resume or overwrite:
            raise UsageError("--resume and --overwrite need a file: give --output FILE")
        return None
    path = Path(output)
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError(f"{output} is the --input too: give another --output")
    if path.is_file() and path.stat().st_size > 0 and not (resume or overwrite):
        raise UsageError(
            f"{output} exists: --resume keeps its answers and goes on, --overwrite begins anew"
        )
    return path


def answered(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers that a file holds to the first of these rows, without a last line cut off.

    DataError where they are answers to other rows.
    """
    try:
        lines = finished_lines(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}: give another --output") from None
    except ValueError:
        raise DataError(f"{path} holds no answers of this command: give another --output") from None
    if len(lines) > len(rows):
        raise DataError(
            f"{path} has {len(lines)} answers to {len(rows)} rows: give the rows that it was made "
            "from, or --overwrite to begin anew"
        )
    return [
        _answer(line, row, f"{path}:{number}")
        for number, (line, row) in enumerate(zip(lines, rows, strict=False), 1)
    ]


def _answer(line: str, row: Mapping[str, Any], place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not set(GAINED) <= found.keys():
        raise DataError(f"{place} is no answer of this command: --overwrite begins anew")
    if _asked(found) != _asked(row):
        raise DataError(
            f"{place} answers another row: give the rows that it was made from, or --overwrite to "
            "begin anew"
        )
    return found


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in (*GAINED, "thinking", "error")}


def refuse_unanswered(rows: Sequence[Mapping[str, Any]]) -> None:
    """DataError where answers are missing; it names the first of the rows, counted from 1."""
    wrong = [(at, row) for at, row in enumerate(rows, 1) if row["finish_reason"] == "error"]
    if wrong:
        at, row = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(rows)} rows have no answer, the first is row {at}: "
            f"{row.get('error')}; the output names the others"
        )


def opened(path: Path | None, *, resume: bool) -> contextlib.AbstractContextManager[IO[str]]:
    """The file to write to, behind what is in it with `resume`; what is stdout now without one."""
    return contextlib.nullcontext(sys.stdout) if path is None else _opened(path, resume)


@contextlib.contextmanager
def _opened(path: Path, resume: bool) -> Iterator[IO[str]]:
    try:
        if resume:
            cut_unfinished(path)
        file = path.open("a" if resume else "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another --output") from None
    with file:
        yield file


def alpaca_entry(row: Mapping[str, Any], question: str) -> dict[str, Any]:
    """What AlpacaEval calls a row: its instruction, and its data set where it has one."""
    named = {"dataset": row["dataset"]} if "dataset" in row else {}
    return {"instruction": question, **named}
