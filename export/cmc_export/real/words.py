"""`python -m cmc_export.real.words DELTA --data FILE -o FOLDER`: a delta with the task's own words.

A delta cannot single out a word that its vocabulary does not hold: with 4,096 tokens a base's
`Ticket` shares the delta's `T` with `Take` and `Try`, and one shift moves them all. So the words
that many answers use, and that the delta writes in pieces, become tokens of the pretrained delta
before it learns: merges after all others, each row of the tied embeddings the mean of its pieces'.

    T ick et --> merges (T, ick), (Tick, et) --> tokens Tick, Ticket
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from cmc_export.real.data import read_records

SHARE: Final = 0.05
"""Of the answers that must use a word."""
WORD: Final = re.compile(r"(?P<before>^|[ \n])(?P<word>[A-Za-z]+|#+)")
ROUNDS: Final = 3
EMBEDDINGS: Final = "model.embed_tokens.weight"


def frequent_words(answers: Sequence[str], share: float = SHARE) -> list[str]:
    """Words that at least that share of the answers use, as SentencePiece writes them.

    >>> frequent_words(["Ticket: oven", "It is.\\nTicket: watch"], 1.0)
    ['Ticket']
    """
    counts = Counter(word for answer in answers for word in _written(answer))
    return sorted(word for word, count in counts.items() if count >= share * len(answers))


def _written(answer: str) -> set[str]:
    return {
        ("\u2581" if one["before"] == " " else "") + one["word"] for one in WORD.finditer(answer)
    }


def add_words(source: Path, words: Sequence[str], target: Path) -> list[str]:
    """Write the delta with the words among its tokens; the tokens that are new."""
    shutil.copytree(source, target)
    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    rows, new = _extended(document, Tokenizer.from_file(str(source / "tokenizer.json")), words)
    (target / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    weights = load_file(target / "model.safetensors")
    table = weights[EMBEDDINGS]  # (V, width) float32, input and output
    weights[EMBEDDINGS] = np.concatenate([table, *(table[ids].mean(0)[None] for ids in rows)])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(weights[EMBEDDINGS])
    (target / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return new


def _extended(
    document: dict[str, Any], before: Tokenizer, words: Sequence[str]
) -> tuple[list[list[int]], list[str]]:
    """Adds tokens and merges to the document: the old pieces of every new token, and its text.

    A merge of one word may come between another's pieces: then that one is joined once more.
    """
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    rows: list[list[int]] = []
    new: list[str] = []
    tokenizer, waiting = before, list(words)
    for _ in range(ROUNDS):
        for word in waiting:
            pieces = _pieces(tokenizer, word)
            whole = pieces[0]
            for piece in pieces[1:]:
                merges.append([whole, piece])
                whole += piece
                if whole not in vocabulary:
                    vocabulary[whole] = len(vocabulary)
                    rows.append([before.token_to_id(one) for one in _split(before, whole)])
                    new.append(whole)
        tokenizer = Tokenizer.from_str(json.dumps(document))
        waiting = [word for word in waiting if len(_pieces(tokenizer, word)) > 1]
    return rows, new


def _split(tokenizer: Tokenizer, text: str) -> list[str]:
    """A new token's text in old ones, by the model alone: no space is put before it."""
    return [one.value for one in tokenizer.model.tokenize(text)]


def _pieces(tokenizer: Tokenizer, word: str) -> list[str]:
    """How the delta writes a word, after a space or (here after a line's end) without one."""
    if word.startswith("\u2581"):
        tokens = tokenizer.encode(word[1:], add_special_tokens=False).tokens
        return [str(one) for one in tokens]
    tokens = tokenizer.encode("\n" + word, add_special_tokens=False).tokens
    return [str(one) for one in tokens[tokens.index("<0x0A>") + 1 :]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the delta; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="DELTA")
    parser.add_argument("--data", type=Path, required=True, help="the task's training part")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    answers = [one["answer"] for one in read_records(given.data)]
    new = add_words(given.source, frequent_words(answers), given.output)
    print(f"{len(new)} tokens more: {' '.join(new)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
