"""The rows that `cmc-local generate` answers: read, checked, and made into conversations.

{"id": 7, "question": "Who wrote it?"} -> [{"role": "user", "content": "Who wrote it?"}]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmc_local.errors import DataError, InputError, UsageError
from cmc_local.text.prompts import Message

EXPECTED = 'an object with "prompt", "messages", "question" or "instruction" (and "input")'


def read_rows(prompt: str | None, source: str | None) -> Iterator[dict[str, Any]]:
    """The one row of a prompt (or of stdin), or those of a JSONL file; `-` is stdin."""
    if source is not None and prompt is not None:
        raise UsageError("PROMPT and --input exclude each other: give one of them")
    if source is None:
        text = sys.stdin.read() if prompt is None else prompt
        if not text.strip():
            raise UsageError("the prompt is empty: give one as PROMPT or on stdin")
        yield {"prompt": text.rstrip("\n") if prompt is None else text}
        return
    name = "stdin" if source == "-" else source
    found = False
    for number, line in enumerate(_lines(source), start=1):
        if line.strip():
            found = True
            yield _row(line, f"{name}:{number}")
    if not found:
        raise DataError(f"{name} holds no rows: give one JSON object on each line, {EXPECTED}")


def row_messages(row: Mapping[str, Any], system: str | None = None) -> list[Message]:
    """The conversation that a row asks to be answered; `system` if it has no system text itself."""
    return _with_system(_messages(row), system)


def _messages(row: Mapping[str, Any]) -> list[Message]:
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise UsageError('"messages" must be a list of {"role": ..., "content": ...}')
        if messages and messages[-1].get("role") == "assistant":  # training data holds the answer
            messages = messages[:-1]
        return list(messages)
    name = next((key for key in ("prompt", "question", "instruction") if key in row), None)
    if name is None:
        raise UsageError(f"expected {EXPECTED}")
    more = row.get("input") or row.get("context") if name == "instruction" else None
    parts = [row[name], *([more] if more else [])]
    if not all(isinstance(part, str) for part in parts):
        raise UsageError(f'"{name}" must be a text')
    asked: Message = {"role": "user", "content": "\n".join(parts)}
    return _with_system([asked], row.get("system"))


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _lines(source: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {source}: {reason}: give a JSONL file in UTF-8") from None


def _row(line: str, place: str) -> dict[str, Any]:
    """A checked row; DataError names its file and line."""
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"{type(row).__name__} found")
        row_messages(row)
        if "\\u" in line:  # half a character can be escaped, but not written in UTF-8
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place}: a text holds half a character: write it whole") from None
    except (ValueError, RecursionError, UsageError) as error:
        raise DataError(f"{place}: {error}: each line must be {EXPECTED}") from None
    return row
