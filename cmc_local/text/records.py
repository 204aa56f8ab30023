"""JSON records of a file, each with its place for messages: a line each (JSONL), or one JSON list.

Knows nothing of what the records mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmc_local.errors import DataError


def read_records(
    path: Path | None, wanted: str = "a JSONL file", *, texts: bool = False
) -> Iterator[tuple[str, Any]]:
    """("file:line", object) of each line that is not blank; ("file:entry N", object) in a list.

    None is stdin. With `texts` a record may be a JSON string too. DataError for a file that cannot
    be read and for a record of another kind; it ends with what is `wanted`.
    """
    name = "stdin" if path is None else str(path)
    try:
        data = sys.stdin.buffer.read() if path is None else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text, {error}"
        raise DataError(f"{name} cannot be read ({reason}): give {wanted}") from None
    entries = _entries(text, name, wanted) if text.lstrip()[:1] == "[" else _lines(text, name)
    for place, record in entries:
        if not isinstance(record, (dict, str) if texts else dict):
            told = record if isinstance(record, Exception) else f"{type(record).__name__} found"
            raise DataError(f"{place}: expected one JSON object ({told}): give {wanted}")
        yield place, record


def _lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a text may hold U+2028, which ends no line of JSON.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{name}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"{name}:{number}", ValueError(str(error).split(":")[0])


def _entries(text: str, name: str, wanted: str) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: expected a JSON list ({error}): give {wanted}") from None
    for number, record in enumerate(found, 1):
        yield f"{name}:entry {number}", record
