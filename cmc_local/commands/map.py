"""`cmc-local map`: how one vocabulary is carried over to another, and how well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmc_local import files
from cmc_local.commands import completing, options
from cmc_local.errors import DataError, TokenizerError, UsageError
from cmc_local.hub import places
from cmc_local.settings import Fallback

if TYPE_CHECKING:
    from cmc_local.commands.map_report import Report, Side, Usage
    from cmc_local.text.delta_tokenizer import DeltaTokenizer


@dataclass(frozen=True)
class Base:
    side: Side
    encode: Callable[[str], list[int]]
    """The base's own tokens of a text, no BOS."""


@click.command("map")
@click.option("--base", required=True, metavar="FILE", shell_complete=completing.file,
              help="The base: a GGUF file or a tokenizer.json.")  # fmt: skip
@click.option("--delta", required=True, metavar="PATH", shell_complete=completing.file,
              help="The delta: an adapter or a tokenizer.json.")  # fmt: skip
@click.option(
    "--fallback",
    type=click.Choice(["first-piece", "none"]),
    default="first-piece",
    show_default=True,
    help="For base tokens that nothing begins like: the delta's first piece of their text.",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Weigh by the base's tokens of this text file."
)
@click.option("--token", metavar="TEXT", help="Explain this token, by text or spelling.")
@click.option("--ids", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the map: a JSON list of delta tokens, -1 for none.")  # fmt: skip
@options.json_output
def command(
    base: str,
    delta: str,
    fallback: Fallback,
    text: Path | None,
    token: str | None,
    ids: Path | None,
    as_json: bool,
) -> None:
    """Show how a base model's vocabulary is carried over to a delta's."""
    from cmc_local.commands import map_report

    if token == "":
        raise UsageError("--token is empty: give the text or the spelling of a token")
    own = read_base(base)
    report = _report(own, delta, fallback, text, token)
    if ids is not None:
        files.write_text(ids, json.dumps(report.made.ids.tolist()))
    if as_json:
        click.echo(json.dumps(map_report.as_json(report), ensure_ascii=False))
        return
    for line in map_report.explain(report) if report.asked else map_report.as_text(report):
        click.echo(line)


def _report(
    base: Base, delta: str, fallback: Fallback, text: Path | None, token: str | None
) -> Report:
    from cmc_local.commands.map_report import Report, Side
    from cmc_local.text.token_map import load_or_build

    tokenizer = read_delta(delta)
    start = time.perf_counter()
    made = load_or_build(
        base.side.vocabulary,
        tokenizer.vocabulary,
        fallback=fallback,
        encode=tokenizer.encode,
        tokenizer_sha256=tokenizer.sha256,
    )
    seconds = time.perf_counter() - start
    usage = None if text is None else _count(base, text)
    asked = () if token is None else _find(base, token)
    side = Side(delta, tokenizer.vocabulary)
    return Report(base.side, side, made, fallback, seconds, usage, asked)


def read_base(text: str) -> Base:
    """A tokenizer.json, a folder that holds one, or a GGUF file."""
    from cmc_local.commands.map_report import Side

    path = Path(text)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path /= "tokenizer.json"
    if path.suffix == ".json":
        from cmc_local.text.vocabulary import from_tokenizer_json

        return Base(Side(text, from_tokenizer_json(path)), lambda words: _json_ids(path, words))
    from cmc_local.base import vocabulary as base_vocabulary

    gguf = places.gguf_path(text)
    vocabulary = base_vocabulary.read_vocabulary(gguf)
    return Base(Side(text, vocabulary), lambda words: base_vocabulary.encode(gguf, words))


def _json_ids(path: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # a text's own "<unk>" is text
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def read_delta(text: str) -> DeltaTokenizer:
    """The tokenizer of an adapter, of a model's folder, or a file."""
    from cmc_local.delta import adapter
    from cmc_local.text.delta_tokenizer import DeltaTokenizer

    path = Path(text)
    if path.suffix == ".json":
        data = _bytes(path)
    else:
        folder = places.adapter_path(text)
        packed = (folder / adapter.SETTINGS_FILE).is_file()
        path = folder / adapter.TOKENIZER_FILE
        bare = path.is_file() and not packed
        data = _bytes(path) if bare else adapter.load(folder).tokenizer_json
    try:
        return DeltaTokenizer(data)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}; give a tokenizer.json") from error


def _count(base: Base, path: Path) -> Usage:
    """The base's tokens of a text file, counted."""
    import numpy as np

    from cmc_local.commands.map_report import Usage

    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a text file") from error
    tokens = np.array(base.encode(text), dtype=np.int64)
    if not tokens.size:
        raise DataError(f"{path} is empty: give a text file to weigh by")
    return Usage(path.name, np.bincount(tokens, minlength=len(base.side.vocabulary)))


def _find(base: Base, token: str) -> tuple[int, ...]:
    """Base tokens with this text or spelling; else those that the base writes it with."""
    vocabulary = base.side.vocabulary
    text = token.encode("utf-8", "replace")
    pairs = zip(vocabulary.tokens, vocabulary.names, strict=True)
    found = tuple(i for i, (own, name) in enumerate(pairs) if text == own or token == name)
    if found:
        return found
    # After a newline: at the start of a text, SentencePiece would put a space before it.
    start, whole = base.encode("\n"), base.encode("\n" + token)
    pieces = whole[len(start) :] if whole[: len(start)] == start else base.encode(token)
    if not pieces:
        raise UsageError(f"--token {token!r}: the base has no such token; look at its spellings")
    click.echo(f"no base token is {token!r}; the base writes it as these:", err=True)
    return tuple(dict.fromkeys(pieces))
