"""What people get wrong, through the real command: one line that says what, where and what next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_models
from cmc_local.delta import adapter
from cmc_local.delta.adapter import AdapterSettings, DeltaShape
from cmc_local.text.prompts import named_form

SHAPE = DeltaShape(
    vocabulary=480, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8, context=64
)
Case = Callable[[Path, Path], list[str]]
"""Makes the bad input in a folder, given a good GGUF; the words of the command."""


def generate(*words: str | Path) -> list[str]:
    return ["generate", *map(str, words)]


def missing_file(place: Path, gguf: Path) -> list[str]:
    return generate("Hello", "--gguf", place / "absent.gguf")


def text_as_gguf(place: Path, gguf: Path) -> list[str]:
    path = place / "notes.gguf"
    path.write_text("Dear diary,\n" * 40)
    return generate("Hello", "--gguf", path)


def truncated_gguf(place: Path, gguf: Path) -> list[str]:
    path = place / "short.gguf"
    path.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    return generate("Hello", "--gguf", path)


def an_adapter(place: Path) -> Path:
    """A folder whose files agree with its hashes; its graph is never reached."""
    words = tiny_models.tokenizer().to_str().encode()
    settings = AdapterSettings(name="ours", shape=SHAPE, prompt=named_form("cmc"))
    files: dict[str, bytes | Path] = {"delta.onnx": bytes(5000), "tokenizer.json": words}
    return adapter.write(place / "ours", settings, files).path


def truncated_adapter(place: Path, gguf: Path) -> list[str]:
    folder = an_adapter(place)
    os.truncate(folder / "delta.onnx", 2000)
    return generate("Hello", "--gguf", gguf, "--adapter", folder)


def wrong_hash(place: Path, gguf: Path) -> list[str]:
    folder = an_adapter(place)
    (folder / "delta.onnx").write_bytes(bytes(4999) + b"!")
    return generate("Hello", "--gguf", gguf, "--adapter", folder)


def newer_format(place: Path, gguf: Path) -> list[str]:
    settings = an_adapter(place) / "adapter.json"
    document = json.loads(settings.read_bytes())
    settings.write_text(json.dumps(document | {"format": document["format"] + 1}))
    return generate("Hello", "--gguf", gguf, "--adapter", settings.parent)


def broken_jsonl(place: Path, gguf: Path) -> list[str]:
    rows = place / "rows.jsonl"
    rows.write_text('{"prompt": "Hello"}\n{"prompt": "Hel\n')
    return generate("--input", rows, "--gguf", gguf)


def broken_training_data(place: Path, gguf: Path) -> list[str]:
    rows = place / "rows.jsonl"
    rows.write_text('{"question": "Who?", "answer": "She."}\n{"question": "Wh\n')
    template = str(gguf.parent / "tiny")
    return ["train", "--template", template, "--data", str(rows), "--output", str(place / "out")]


def empty_prompt(place: Path, gguf: Path) -> list[str]:
    return generate("", "--gguf", gguf)


def long_prompt(place: Path, gguf: Path) -> list[str]:
    return generate("Where was she born? " * 100, "--gguf", gguf)


def alpha_is_no_number(place: Path, gguf: Path) -> list[str]:
    return generate("Hello", "--gguf", gguf, "--adapter", f"{an_adapter(place)}:abc")


CASES = (
    (missing_file, 1, "no GGUF file at {place}/absent.gguf", "give its path"),
    (text_as_gguf, 1, "notes.gguf is no GGUF file", "give one"),
    (truncated_gguf, 1, "short.gguf", "again"),
    (truncated_adapter, 1, "ours/delta.onnx has 2000 bytes, not 5000", "export it anew"),
    (wrong_hash, 1, "ours/delta.onnx does not match its sha256", "export it anew"),
    (newer_format, 1, "ours/adapter.json is of format 2", "upgrade with"),
    (broken_jsonl, 1, "rows.jsonl:2", "on each line"),
    (broken_training_data, 1, "rows.jsonl:2", "expected"),
    (empty_prompt, 2, "the prompt is empty", "give one"),
    (long_prompt, 2, "context holds 128", "shorten the prompt"),
    (alpha_is_no_number, 2, "'abc' is no strength", "write a number"),
)


@pytest.mark.parametrize(
    ("case", "code", "cause", "next_step"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_a_bad_input_is_one_line(
    case: Case, code: int, cause: str, next_step: str, tmp_path: Path, tiny_gguf: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cmc_local", *case(tmp_path, tiny_gguf)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1", "CMC_CACHE": str(tmp_path / "cache")},
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("cmc-local: error: ")
    assert cause.format(place=tmp_path) in line
    assert next_step in line
    assert done.stdout == ""
    assert done.returncode == code
