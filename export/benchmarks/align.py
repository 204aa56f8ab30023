"""What alignment costs: after each base token the tail encoded again, or the whole text.

    python export/benchmarks/align.py --base GGUF --delta tokenizer.json [--text FILE]

    tokens of a text, base's own  ->  `Aligner.push`         incremental
                                  ->  `encode` of it all     full, as the published code does

Both give the same stream at every step, or the measurement ends with an error. `fed` counts the
delta's tokens that a base token costs, `again` those of them that were fed before: the price of
tokens that only later text decides.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from cmc_local import bundled
from cmc_local.bench import texts
from cmc_local.bench.arms import undisturbed
from cmc_local.bench.machine import machine
from cmc_local.bench.paired import quotients, spread
from cmc_local.commands.map import read_base, read_delta
from cmc_local.text.alignment import Aligner, edit_between
from cmc_local.text.delta_tokenizer import DeltaPrompt, DeltaTokenizer
from cmc_local.text.prompts import named_form

QUESTION = "What does the text say?"


@dataclass(frozen=True)
class Alignment:
    """One base's tokens of one text followed by one delta; times in seconds a base token."""

    base: str
    delta: str
    base_tokens: int
    characters: int
    delta_tokens: int
    """Of the text, once all of it is there."""
    fed: int
    longest_tail: int
    """Characters that were encoded in one step, at most."""
    incremental: Sequence[float]
    full: Sequence[float]

    @property
    def fed_per_token(self) -> float:
        return self.fed / self.base_tokens

    @property
    def again_per_token(self) -> float:
        return (self.fed - self.delta_tokens) / self.base_tokens

    @property
    def faster(self) -> list[float]:
        """How many times faster the tail alone is, round by round."""
        return quotients(self.full, self.incremental)


def measure(
    base: str, pieces: Sequence[bytes], delta: str, tokenizer: DeltaTokenizer, rounds: int
) -> Alignment:
    """Follow `pieces`, the base's tokens as bytes, both ways in turn, after a round unmeasured."""
    form = named_form("cmc")
    prompt = tokenizer.prompt(form, [{"role": "user", "content": QUESTION}], max_tokens=10_000)
    before, begin = form.question(QUESTION), [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    fed, longest, aligner = _follow(pieces, tokenizer, prompt, before, begin)
    times: dict[str, list[float]] = {"incremental": [], "full": []}
    for number in range(-1, rounds):
        ways = {
            "incremental": lambda: _incremental(pieces, tokenizer, prompt),
            "full": lambda: _full(pieces, tokenizer, before, begin),
        }
        for name in sorted(ways, reverse=number % 2 == 1):
            with undisturbed():
                begun = perf_counter()
                ways[name]()
                spent = perf_counter() - begun
            if number >= 0:
                times[name].append(spent / len(pieces))
    return Alignment(
        base=base,
        delta=delta,
        base_tokens=len(pieces),
        characters=len(b"".join(pieces).decode("utf-8", "replace").lstrip(" ")),
        delta_tokens=len(aligner.tokens) - len(Aligner(tokenizer, prompt).tokens),
        fed=fed,
        longest_tail=longest,
        incremental=times["incremental"],
        full=times["full"],
    )


def _incremental(pieces: Sequence[bytes], tokenizer: DeltaTokenizer, prompt: DeltaPrompt) -> None:
    aligner = Aligner(tokenizer, prompt)
    for piece in pieces:
        aligner.push(piece)


def _full(
    pieces: Sequence[bytes], tokenizer: DeltaTokenizer, before: str, begin: Sequence[int]
) -> None:
    stream: list[int] = []
    for text in _texts(pieces):
        new = [*begin, *tokenizer.encode(before + text)]
        edit_between(stream, new)
        stream = new


def _texts(pieces: Sequence[bytes]) -> Iterator[str]:
    """The response after each piece; half a character at its end waits."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for piece in pieces:
        text += decoder.decode(piece)
        yield text.lstrip(" ")


def _follow(
    pieces: Sequence[bytes],
    tokenizer: DeltaTokenizer,
    prompt: DeltaPrompt,
    before: str,
    begin: Sequence[int],
) -> tuple[int, int, Aligner]:
    """Tokens fed and the longest tail; every step compared with the whole text's encoding."""
    aligner, fed, longest = Aligner(tokenizer, prompt), 0, 0
    for number, (piece, text) in enumerate(zip(pieces, _texts(pieces), strict=True)):
        longest = max(longest, aligner.tail_length + len(piece.decode("utf-8", "replace")))
        fed += len(aligner.push(piece).feed)
        if aligner.tokens != [*begin, *tokenizer.encode(before + text)]:
            raise RuntimeError(f"after piece {number}, {piece!r}, the tail's tokens are others")
    return fed, longest, aligner


def as_lines(found: Sequence[Alignment]) -> Iterator[str]:
    """The table: a row for each pair of vocabularies."""
    base, delta = (max(len(name), *map(len, names)) for name, names in _names(found))
    yield (
        f"{'base':<{base}}  {'delta':<{delta}}  {'tokens':>6}  {'fed':>5}  {'again':>5}"
        f"  {'tail':>4}  {'us/token':>8}  {'full':>8}  {'faster':>7}"
    )
    for one in found:
        times = [1e6 * spread(values).median for values in (one.incremental, one.full)]
        yield (
            f"{one.base:<{base}}  {one.delta:<{delta}}  {one.base_tokens:>6}"
            f"  {one.fed_per_token:>5.2f}  {one.again_per_token:>5.2f}  {one.longest_tail:>4}"
            f"  {times[0]:>8.1f}  {times[1]:>8.1f}  {spread(one.faster).median:>6.1f}x"
        )


def as_json(found: Sequence[Alignment]) -> list[dict[str, Any]]:
    """Everything, in JSON's types."""
    return [
        {
            "base": one.base,
            "delta": one.delta,
            "base_tokens": one.base_tokens,
            "characters": one.characters,
            "delta_tokens": one.delta_tokens,
            "fed_per_token": round(one.fed_per_token, 4),
            "again_per_token": round(one.again_per_token, 4),
            "longest_tail": one.longest_tail,
            "incremental_us": round(1e6 * spread(one.incremental).median, 2),
            "full_us": round(1e6 * spread(one.full).median, 2),
            "incremental_vs_full": round(spread(one.faster).median, 2),
            "spread": [round(spread(one.faster).low, 2), round(spread(one.faster).high, 2)],
        }
        for one in found
    ]


def _names(found: Sequence[Alignment]) -> Iterator[tuple[str, list[str]]]:
    yield "base", [one.base for one in found]
    yield "delta", [one.delta for one in found]


@click.command()
@click.option("--base", "bases", multiple=True, help="GGUF or tokenizer.json (the bundled ones).")
@click.option("--delta", "deltas", multiple=True, help="Adapter or tokenizer.json (instruct).")
@click.option("--text", type=click.Path(path_type=Path, exists=True), help="(a bundled text)")
@click.option("--characters", default=4000, show_default=True, help="So much of the text.")
@click.option("--rounds", default=5, show_default=True)
def main(
    bases: tuple[str, ...],
    deltas: tuple[str, ...],
    text: Path | None,
    characters: int,
    rounds: int,
) -> None:
    words = texts.sample("prose").text if text is None else text.read_text("utf-8", "replace")
    words = words.lstrip()[:characters]
    own = [(_name(one), read_base(one)) for one in bases or bundled.BASES]
    theirs = [(_name(one), read_delta(one)) for one in deltas or (bundled.DEFAULT_ADAPTER,)]
    found = []
    for (base, read), (delta, tokenizer) in product(own, theirs):
        pieces = [read.side.vocabulary.tokens[token] for token in read.encode(words)]
        found.append(measure(base, pieces, delta, tokenizer, rounds))
    click.echo("\n".join(as_lines(found)))
    click.echo(json.dumps({"pairs": as_json(found), "machine": machine()}, ensure_ascii=False))


def _name(text: str) -> str:
    """A tokenizer.json by its folder, another file without its ending."""
    path = Path(text)
    return path.parent.name or path.stem if path.name == "tokenizer.json" else path.stem


if __name__ == "__main__":
    main()
