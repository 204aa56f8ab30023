"""The adapter `brief`, which ships: trained towards short, direct answers.

    texts.py -> pretrain -> brief's data -> SmolLM2's answers -> train -> export to models/brief

It learns from rasbt's training part (Apache-2.0) and Dolly's short answers (CC BY-SA), beside
SmolLM2 (Apache-2.0), which is asked in its own chat template; both recipes stand in
export/recipes/brief.toml. A stage whose result is there is passed over. Run it in a checkout's
root.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cmc_export.family.texts import data_folder
from cmc_export.real import data, texts
from cmc_export.real.places import gguf
from cmc_export.stages import Say, Stage, run

RECIPE: Final = Path("export/recipes/brief.toml")
ADAPTER: Final = Path("models/brief")
SEED: Final = 1
DOLLY_ROWS, DOLLY_VALID = 700, 60
LONGEST_QUESTION, LONGEST_ANSWER = 160, 240
CONTEXT: Final = 512


def make(runs: Path, say: Say) -> None:
    """Everything, from the texts to the adapter."""
    texts.write_pretraining_text(runs / "pretrain.jsonl")
    place = write_data(runs)
    for stage in stages(runs, place):
        run(stage, say)


def write_data(runs: Path) -> Path:
    """train.jsonl and valid.jsonl in runs/real/brief, unless they are there; their folder."""
    place, short, dolly = runs / "brief", data.short(), list(dolly_rows())
    parts = {
        "train": [*short["train"], *dolly[DOLLY_VALID:]],
        "valid": [*short["valid"], *dolly[:DOLLY_VALID]],
    }
    for part, records in parts.items():
        if not (place / f"{part}.jsonl").is_file():
            data.write_records(place / f"{part}.jsonl", records)
    return place


def dolly_rows() -> Iterator[data.Record]:
    """Dolly's questions without a text to read, with short answers."""
    path = data_folder() / "instruct/dolly_3k.json"
    rows = [
        row
        for row in json.loads(path.read_text(encoding="utf-8"))
        if not row["input"]
        and len(row["instruction"]) < LONGEST_QUESTION
        and 2 <= len(row["output"]) <= LONGEST_ANSWER
    ]
    random.Random(SEED).shuffle(rows)
    for row in rows[:DOLLY_ROWS]:
        yield {"question": row["instruction"].strip(), "answer": row["output"].strip()}


def stages(runs: Path, place: Path) -> Iterator[Stage]:
    """The commands; the recipe's paths are those of runs/real."""
    pretrained, answers, delta = runs / "pretrained", place / "answers", place / "delta"
    train, valid, template = place / "train.jsonl", place / "valid.jsonl", gguf("smollm2")
    yield Stage(
        pretrained,
        f"pretrain --config {RECIPE} --text {runs}/pretrain.jsonl --resume -o {pretrained}",
    )
    yield Stage(
        answers / "table.json",
        f"record --template {template} --template-prompt gguf --data {train} --data {valid} "
        f"--turns last --init {pretrained} --resume -o {answers}",
    )
    yield Stage(
        delta,
        f"train --config {RECIPE} --answers {answers} --init {pretrained} --data {train} "
        f"--valid {valid} --resume -o {delta}",
    )
    yield Stage(
        ADAPTER,
        f"export {delta} --template {template} --data {valid} --precision int8 --precision fp16 "
        f"--name brief --context {CONTEXT} --license Apache-2.0 -o {ADAPTER}",
    )
