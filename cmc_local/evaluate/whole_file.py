"""Files written whole or not at all: under a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cmc_local.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; InputError where the place cannot be written."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text, half a character as "?"; InputError where the place cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(text.encode("utf-8", "replace"))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): give a file in a folder of yours"
        ) from None
