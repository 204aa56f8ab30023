"""Files written whole or not at all, and the folder for what can be made again.

    with whole(path) as part:       # a name beside `path`, to write to
        part.write_bytes(data)      # renamed to `path` at the end of the block

Whoever reads meanwhile meets the file of before; where writing fails, that one stays.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import platformdirs

from cmc_local.errors import InputError

OWN_FOLDER: Final = "give a file in a folder of yours"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block is done; nothing is left if it fails.

    The folder is made if need be. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, hint: str = OWN_FOLDER) -> None:
    """Write a file; InputError, which ends in the hint, where the place cannot be written."""
    try:
        with whole(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): {hint}") from None


def write_text(path: Path, text: str, hint: str = OWN_FOLDER) -> None:
    """Write a text in UTF-8, half a character as "?"; errors as `write_bytes`."""
    write_bytes(path, text.encode("utf-8", "replace"), hint)


def write_json(path: Path, value: Any, hint: str = OWN_FOLDER) -> None:
    """Write a value as JSON; errors as `write_bytes`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", hint)


def cache_folder() -> Path:
    """Where token maps and the like are kept: the variable CMC_CACHE, or the system's own place."""
    named = os.environ.get("CMC_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("cmc-local"))
