"""Plain texts from files: documents apart by blank lines, a line each, or a JSON line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmc_export.recipe import Separator
from cmc_local.errors import DataError
from cmc_local.text.records import read_records


def read_documents(paths: Sequence[Path], separator: Separator) -> list[str]:
    """The documents of text files; a .jsonl file has one a line, under `text`."""
    documents: list[str] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: give a text file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text ({error}): convert it") from None
        parts = _json_texts(path) if path.suffix == ".jsonl" else _split(text, separator)
        documents += [part for part in (part.strip() for part in parts) if part]
    if not documents:
        raise DataError(f"{paths[0]}: no text in it: give a file with documents")
    return documents


def _split(text: str, separator: Separator) -> list[str]:
    if separator == "file":
        return [text]
    return text.splitlines() if separator == "line" else re.split(r"\n[ \t\r]*\n", text)


def _json_texts(path: Path) -> Iterator[str]:
    for place, record in read_records(path, '{"text": "..."} or a JSON string a line', texts=True):
        value = record.get("text") if isinstance(record, dict) else record
        if not isinstance(value, str):
            raise DataError(f'{place}: expected {{"text": "..."}} or a JSON string')
        yield value
