"""JSON lines: the objects of a file, each with its place for messages.

Knows nothing of what the objects mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmc_local.errors import DataError


def read_records(path: Path, wanted: str = "a JSONL file") -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for each line that is not blank.

    DataError for a file that cannot be read and for a line that is no object; it ends with what is
    `wanted`.
    """
    try:
        # Not splitlines(): a text may hold U+2028, which ends no line of JSON.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read ({reason}): give {wanted}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected one JSON object: give {wanted}")
        yield f"{path}:{number}", record
