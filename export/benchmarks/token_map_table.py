"""The shared vocabularies onto Llama-2, by our token map and by the published rule, as Markdown.

    python export/benchmarks/token_map_table.py [--text FILE]

The published rule (wujwyi/CMC) compares spellings where ours compares texts. A token spelled
`<...>` takes the delta token of its own number; any other one takes the token of the same spelling,
else the nearest of those that begin it or that it begins, a lone U+2581 aside. "wrong" counts the
tokens that it gives a counterpart of another role, of an unrelated text (`Ġthe` takes the letter
`Ġ`) or of a number outside the delta's vocabulary. The last shares are of a text's tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cmc_local.base.vocabulary import encode, read_vocabulary
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.token_map import Match, build, load_or_build
from cmc_local.text.vocabulary import Vocabulary, from_tokenizer_json

REPOSITORY = Path(__file__).resolve().parents[2]
EXACT, NEAR, NUMBER, NONE = range(4)


@dataclass(frozen=True)
class Base:
    name: str
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]


def bases(data: Path) -> Iterator[Base]:
    for path in sorted((data / "vocab").glob("*.gguf")):
        name = path.stem.removeprefix("ggml-vocab-")
        yield Base(name, read_vocabulary(path), lambda text, path=path: encode(path, text))
    for path in sorted((data / "tokenizers").glob("*/tokenizer.json")):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # a text's own "<unk>" is text
        yield Base(
            f"{path.parent.name} (tokenizer.json)",
            from_tokenizer_json(path),
            lambda text, own=tokenizer: own.encode(text, add_special_tokens=False).ids,
        )


def published(base: Vocabulary, delta: Vocabulary) -> tuple[list[int], NDArray[np.uint8]]:
    """(ids, kinds) by the published rule; what two loops would find, candidates first gathered."""
    first: dict[str, int] = {}
    begun_by: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(delta.names):
        first.setdefault(name, i)
        for cut in range(1, len(name)):
            begun_by[name[:cut]].append(i)
    ids, kinds = [], np.full(len(base), NONE, np.uint8)
    for i, name in enumerate(base.names):
        found = -1
        if name.startswith("<") and name.endswith(">") and len(name) > 2:
            found, kinds[i] = i, NUMBER
        elif name in first:
            found, kinds[i] = first[name], EXACT
        elif near := nearest(name, delta, first, begun_by):
            found, kinds[i] = near[1], NEAR
        ids.append(found)
    return ids, kinds


def nearest(
    name: str, delta: Vocabulary, first: dict[str, int], begun_by: dict[str, list[int]]
) -> tuple[int, int] | None:
    """The best (edit distance, id) among the spellings of which one begins the other."""
    shorter = (first[name[:cut]] for cut in range(1, len(name)) if name[:cut] in first)
    offers = [
        (abs(len(delta.names[d]) - len(name)), d)
        for d in (*shorter, *begun_by.get(name, ()))
        if delta.names[d] != "\u2581" or not name.strip("\u2581")
    ]
    return min(offers, default=None)


def is_wrong(base: Vocabulary, i: int, delta: Vocabulary, d: int) -> bool:
    """Whether a counterpart is another role's, or of a text that neither begins the other."""
    if d < 0:
        return False
    if d >= len(delta):
        return True
    text, other = base.tokens[i], delta.tokens[d]
    if not text or not other:
        return bool(base.roles[i] != delta.roles[d])
    return not (text.startswith(other) or other.startswith(text))


def row(base: Base, delta: DeltaTokenizer, text: str) -> list[str]:
    ours, seconds, cached = timed(base.vocabulary, delta)
    plain = build(base.vocabulary, delta.vocabulary, fallback="none")
    ids, kinds = published(base.vocabulary, delta.vocabulary)
    wrong = np.array([is_wrong(base.vocabulary, i, delta.vocabulary, d) for i, d in enumerate(ids)])
    uses = np.bincount(base.encode(text), minlength=len(ids))
    mine = [int((ours == match).sum()) for match in Match]
    theirs = np.bincount(kinds, minlength=4).tolist()
    different = int((plain.ids != np.array(ids)).sum())
    return [
        base.name,
        f"{len(ids):,}",
        *(f"{n:,}" for n in mine),
        *(f"{n:,}" for n in theirs),
        f"{wrong.sum():,}",
        f"{different:,}",
        *(share(uses, kind) for kind in (ours == Match.EXACT, kinds == EXACT)),
        *(share(uses, kind) for kind in (plain.ids < 0, ours == Match.NONE, kinds == NONE)),
        share(uses, wrong),
        f"{seconds:.2f}",
        f"{1000 * cached:.0f}",
    ]


def timed(base: Vocabulary, delta: DeltaTokenizer) -> tuple[NDArray[np.uint8], float, float]:
    """Matches, processor seconds cold, and from the cache; fingerprints included both times."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            for vocabulary in (base, delta.vocabulary):
                vocabulary.__dict__.pop("fingerprint", None)
            start = time.process_time()
            made = load_or_build(
                base,
                delta.vocabulary,
                encode=delta.encode,
                tokenizer_sha256=delta.sha256,
                cache_dir=Path(folder),
            )
            times.append(time.process_time() - start)
    return made.matches, times[0], times[1]


def share(uses: NDArray[np.int64], kind: NDArray[np.bool_]) -> str:
    return f"{100 * uses[kind].sum() / uses.sum():.1f} %"


HEAD = [
    *("base", "tokens", "exact", "near", "first piece", "role", "none"),
    *("published: exact", "near", "by number", "none", "wrong", "ids that differ"),
    *(
        "text exact",
        "published",
        "text none, no fallback",
        "with fallback",
        "published",
        "published wrong",
    ),
    *("s cold", "ms cached"),
]


def main() -> None:
    data = Path(os.environ.get("CMC_DATA", REPOSITORY.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=data / "text" / "wikitext2_test.txt")
    text = parser.parse_args().text.read_text(encoding="utf-8")
    delta = DeltaTokenizer((data / "tokenizers" / "llama2" / "tokenizer.json").read_bytes())
    print("| " + " | ".join(HEAD) + " |")
    print("|---|" + "---:|" * (len(HEAD) - 1))
    for base in bases(data):
        print("| " + " | ".join(row(base, delta, text)) + " |", flush=True)


if __name__ == "__main__":
    main()
