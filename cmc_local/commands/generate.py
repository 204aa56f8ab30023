"""`cmc-local generate`: answer a prompt, stdin, or a JSONL file of prompts.

   {"id": 7, "question": "Who wrote it?"}
-> {"id": 7, "question": "Who wrote it?", "response": "Helen Blackworth.", "tokens": 5, ...}
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from cmc_local.commands import loading, options
from cmc_local.conversation import BasePrompt
from cmc_local.errors import DataError, InputError, UsageError
from cmc_local.prompts import Message
from cmc_local.settings import MOST_PARALLEL, Control, Limits, Sampling
from cmc_local.steered import Completion, SteeredModel

EXPECTED = 'an object with "prompt", "messages", "question" or "instruction" (and "input")'


@click.command()
@click.argument("prompt", required=False)
@click.option("--input", "-i", "source", metavar="FILE", help="JSONL of prompts; - is stdin.")
@click.option("--output", "-o", metavar="FILE", help="Write JSONL (or the answer) to a file.")
@click.option("--system", metavar="TEXT", help="A system text.")
@click.option(
    "--parallel",
    "-p",
    type=click.IntRange(1, MOST_PARALLEL),
    help="Rows of a JSONL file that are answered at once.",
)
@options.gguf
@options.adapters
@options.base_prompt
@options.sampling
@options.control
@options.limits
@options.devices
@options.json_output
def command(
    prompt: str | None,
    source: str | None,
    output: str | None,
    system: str | None,
    gguf: Path,
    adapters: tuple[options.AdapterChoice, ...],
    base_prompt: BasePrompt | None,
    sampling: Sampling,
    control: Control,
    limits: Limits,
    devices: options.Devices,
    as_json: bool,
) -> None:
    """Answer PROMPT, or stdin where it is left out, or every line of a JSONL file.

    The rows of a JSONL file keep their fields and gain "response", "finish_reason" and "tokens".
    """
    rows = list(_rows(prompt, source))
    sampling = loading.bundled_sampling(gguf, sampling)
    limits = replace(limits, parallel=min(limits.parallel, len(rows)))
    with (
        loading.steered(gguf, adapters, control=control, limits=limits, devices=devices) as model,
        _opened(output) as out,
    ):
        asked = [_with_system(row_messages(row), system) for row in rows]
        if source is None and not as_json:
            _stream(model, asked[0], sampling, base_prompt, out)
            return
        replies = model.generate_many(asked, sampling, base_prompt=base_prompt)
        for row, done in zip(rows, _in_order(replies), strict=True):
            _tell(done.notices)
            out.write(json.dumps({**row, **result(done)}, ensure_ascii=False) + "\n")
            out.flush()


def _in_order(replies: Iterator[tuple[int, Completion]]) -> Iterator[Completion]:
    """Replies in the order of their prompts, each as soon as those before it are there."""
    held: dict[int, Completion] = {}
    for turn in itertools.count():
        while turn not in held:
            number, done = next(replies, (-1, None))
            if done is None:
                return
            held[number] = done
        yield held.pop(turn)


def row_messages(row: Mapping[str, Any]) -> list[Message]:
    """The conversation that a row of JSON asks to be answered."""
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


def result(done: Completion) -> dict[str, Any]:
    """What a row gains."""
    return {
        "response": done.text,
        "finish_reason": done.finish_reason,
        "tokens": len(done.tokens),
        "seconds": round(done.timings.total_seconds, 4),
    }


def _rows(prompt: str | None, source: str | None) -> Iterator[dict[str, Any]]:
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
    except (ValueError, RecursionError, UsageError) as error:
        raise DataError(f"{place}: {error}: each line must be {EXPECTED}") from None
    return row


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _stream(
    model: SteeredModel,
    messages: list[Message],
    sampling: Sampling,
    base_prompt: BasePrompt | None,
    out: IO[str],
) -> None:
    """The answer as it comes, then a newline; nothing else on stdout."""
    for piece in model.stream(messages, sampling, base_prompt=base_prompt):
        _tell((piece.notice,) if piece.notice else ())
        out.write(piece.text)
        out.flush()
    out.write("\n")


def _tell(notices: tuple[str, ...]) -> None:
    for notice in notices:
        click.echo(notice, err=True)


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[IO[str]]:
    if output is None or output == "-":
        yield sys.stdout
        return
    with Path(output).open("w", encoding="utf-8") as file:
        yield file
