"""The family's texts: novels, T0 prompts and Dolly's instructions -> documents, tokenizers, splits.

runs/family/documents.jsonl                    what all base models and the delta read
runs/family/{sentencepiece,byte_level}/tokenizer.json
runs/family/{train,valid,test}.jsonl           instructions: Dolly, and the Apache-2.0 set
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmc_export.tokenizer_training import byte_level, sentencepiece_style
from cmc_local.errors import DataError
from cmc_local.files import write_text

SEED = 11
TOKENS = 8000
PASSAGES, PROMPTS = 9000, 7000
"""Novels' passages and T0 prompts among the documents: together some 20 MB."""
PASSAGE = 1500
"""Characters of a passage, about."""
TOKENIZER_DOCUMENTS = 4000
LONGEST = 700
"""Characters of question and answer of an instruction, each: what small models can use."""
HELD_OUT = 300
"""Instructions for the test; half as many for validation."""


def data_folder() -> Path:
    """The folder of the public data; DataError where there is none."""
    place = Path(os.environ.get("CMC_DATA", "../shared/data"))
    if not place.is_dir():
        raise DataError(f"no data in {place}: set CMC_DATA to the folder with text/ and instruct/")
    return place


def write_texts(runs: Path) -> None:
    """Everything in the list above; the same bytes on every machine."""
    data = data_folder()
    train, valid, test = split(instructions(data))
    documents = [*passages(data), *prompts(data), *(f"{q}\n{a}" for q, a in train)]
    random.Random(SEED).shuffle(documents)
    sample = documents[:TOKENIZER_DOCUMENTS]
    write_text(runs / "sentencepiece/tokenizer.json", sentencepiece_style(sample, TOKENS).to_str())
    write_text(runs / "byte_level/tokenizer.json", byte_level(sample, TOKENS).to_str())
    for name, pairs in (("train", train), ("valid", valid), ("test", test)):
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        write_text(runs / f"{name}.jsonl", _jsonl(rows))
    write_text(runs / "documents.jsonl", _jsonl([{"text": text} for text in documents]))


def passages(data: Path) -> list[str]:
    """Passages of the novels, whole paragraphs each, drawn evenly over all of them."""
    found = []
    with tarfile.open(data / "text/100_english_novels.tar.gz") as novels:
        for member in sorted(novels, key=lambda one: one.name):
            file = novels.extractfile(member) if member.name.endswith(".txt") else None
            if file is not None:
                found += list(_cut(file.read().decode("utf-8", "replace")))
    return random.Random(SEED).sample(found, PASSAGES)


def prompts(data: Path) -> list[str]:
    """T0 prompts with their answers."""
    with gzip.open(data / "instruct/t0_train_50k_by_template.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    chosen = random.Random(SEED).sample(rows, PROMPTS)
    return [_t0(row) for row in chosen]


def instructions(data: Path) -> list[tuple[str, str]]:
    """Questions with answers of Dolly and of the Apache-2.0 set, those that are short enough."""
    pairs = []
    for name in ("dolly_3k.json", "rasbt_instruction_data_1100.json"):
        for row in json.loads((data / "instruct" / name).read_text(encoding="utf-8")):
            question = "\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))
            answer = row["output"].strip()
            if answer and max(len(question), len(answer)) <= LONGEST:
                pairs.append((question, answer))
    return list(dict.fromkeys(pairs))


def split(
    pairs: Sequence[tuple[str, str]],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """Training, validation and test parts; no question is in two of them."""
    questions = sorted({question for question, _ in pairs})
    random.Random(SEED).shuffle(questions)
    test, valid = set(questions[:HELD_OUT]), set(questions[HELD_OUT : HELD_OUT * 3 // 2])
    rest = [pair for pair in pairs if pair[0] not in test and pair[0] not in valid]
    return rest, [p for p in pairs if p[0] in valid], [p for p in pairs if p[0] in test]


def _cut(text: str) -> Iterator[str]:
    """Whole paragraphs up to about PASSAGE characters, lines joined."""
    held, size = [], 0
    for paragraph in re.split(r"\n\s*\n|\n(?=[ \t])", text):
        line = " ".join(paragraph.split())
        if not line:
            continue
        held.append(line)
        size += len(line)
        if size >= PASSAGE:
            yield "\n".join(held)
            held, size = [], 0


def _t0(row: dict[str, Any]) -> str:
    answer = str(row["completion"]).removesuffix("<|endoftext|>")
    return f"{row['prompt'][: 2 * PASSAGE].strip()}\n{answer.strip()}"


def _jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
