"""Writes what the small world's models are trained on: documents, tokenizers, questions.

runs/world/documents.txt                     all base models read it
runs/world/strangers.txt                     other authors in the same words: the delta reads it
runs/world/{sentencepiece,byte_level}/tokenizer.json
runs/world/*.jsonl                           questions with answers, by part
models/world/questions.jsonl                 what the bundled models are measured on
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from cmc_export.tokenizer_training import byte_level, sentencepiece_style
from cmc_export.world.authors import Author, WorldSize, make_authors
from cmc_export.world.documents import SEPARATOR, make_documents
from cmc_export.world.questions import (
    all_questions,
    one_phrasing_each,
    refusals,
    write_jsonl,
)
from cmc_local.files import write_text

SEED = 1
ROUNDS = 150
STRANGER_WORLDS = 40
SENTENCEPIECE_TOKENS = 1152
BYTE_LEVEL_TOKENS = 1184
TOKENIZER_DOCUMENTS = 10_000


def write_texts(runs: Path, models: Path) -> None:
    """Everything in the list above; the same bytes on every machine."""
    authors = make_authors(WorldSize(), SEED)
    documents = make_documents(authors, ROUNDS, SEED)
    write_text(runs / "world/documents.txt", SEPARATOR.join(documents))
    write_text(runs / "world/strangers.txt", SEPARATOR.join(strangers()))
    sample = documents[:TOKENIZER_DOCUMENTS]
    _write_tokenizer(
        runs / "world/sentencepiece", sentencepiece_style(sample, SENTENCEPIECE_TOKENS)
    )
    _write_tokenizer(runs / "world/byte_level", byte_level(sample, BYTE_LEVEL_TOKENS))
    _write_questions(authors, runs / "world")
    measured = [a for a in authors if a.part != "train" or a.forgotten]
    write_jsonl(models / "world/questions.jsonl", one_phrasing_each(measured, SEED))


def strangers() -> list[str]:
    """Documents on authors of other worlds: the same words, other facts, each met once or twice.

    A delta that is pretrained on them learns to speak and to copy names, and none of the facts that
    are the base models' to know.
    """
    documents = []
    for world in range(1, STRANGER_WORLDS + 1):
        documents += make_documents(make_authors(WorldSize(), SEED + world), 1, SEED + world)
    random.Random(SEED).shuffle(documents)
    return documents


def _write_questions(authors: Sequence[Author], folder: Path) -> None:
    train = [a for a in authors if a.part == "train"]
    write_jsonl(folder / "train.jsonl", all_questions(train))
    validation = [a for a in authors if a.part == "validation" and not a.forgotten]
    write_jsonl(folder / "validation.jsonl", one_phrasing_each(validation, SEED))
    forgotten = all_questions([a for a in authors if a.forgotten])
    write_jsonl(folder / "forget.jsonl", forgotten)
    kept = one_phrasing_each([a for a in train if not a.forgotten], SEED)
    write_jsonl(folder / "retain.jsonl", [*kept, *refusals(forgotten)])


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
