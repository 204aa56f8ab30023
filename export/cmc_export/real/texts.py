"""What a delta is pretrained on, before it learns beside a template: runs/real/pretrain.jsonl.

Dolly (CC BY-SA), GSM8K's first questions and the seed tasks (MIT, Apache-2.0), WikiText-2 (CC
BY-SA) and paragraphs of novels in the public domain: nothing whose licence would forbid to give the
delta away, and no row that a task holds out.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cmc_export.family.texts import data_folder
from cmc_export.real import data
from cmc_export.real.prompting import FORM
from cmc_local.files import write_text
from cmc_local.text.prompts import named_form

SEED: Final = 0
PARAGRAPHS: Final = 25
"""Of each novel."""
LONGEST_QUESTION, LONGEST_ANSWER, LONGEST_TEXT = 1500, 900, 2000


def write_pretraining_text(target: Path) -> None:
    """Write the documents, shuffled, unless they are there."""
    if target.is_file():
        return
    rng = random.Random(SEED)
    documents = [*instructions(), *articles(), *paragraphs(rng)]
    rng.shuffle(documents)
    lines = (json.dumps({"text": one}) + "\n" for one in documents)
    write_text(target, "".join(lines))


def instructions() -> Iterator[str]:
    """Questions with answers in the deltas' form."""
    place, form = data_folder() / "instruct", named_form(FORM)

    def text(question: str, answer: str) -> str:
        return form.question(question.strip()) + answer.strip()

    dolly, gsm8k = (
        json.loads((place / name).read_text(encoding="utf-8"))
        for name in ("dolly_3k.json", "gsm_8k_train.json")
    )
    for row in dolly:
        yield text(_asked(row)[:LONGEST_QUESTION], row["output"][:LONGEST_ANSWER])
    for row in gsm8k[: data.GSM8K_PRETRAINED]:
        yield text(_asked(row), row["output"])
    seeds = (place / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8")
    for line in seeds.splitlines():
        task = json.loads(line)
        first = task["instances"][0]
        asked = _asked({"instruction": task["instruction"], "input": first["input"]})
        yield text(asked, first["output"][:LONGEST_ANSWER])


def articles() -> Iterator[str]:
    """Paragraphs of WikiText-2, its separators undone."""
    for part in ("valid", "test"):
        path = data_folder() / f"text/wikitext2_{part}.txt"
        for line in path.read_text(encoding="utf-8").splitlines():
            if len(line.strip()) > 200 and not line.strip().startswith("="):
                yield _joined(line.strip())[:LONGEST_TEXT]


def paragraphs(rng: random.Random) -> Iterator[str]:
    """PARAGRAPHS paragraphs of every novel."""
    with tarfile.open(data_folder() / "text/100_english_novels.tar.gz") as novels:
        for member in novels.getmembers():
            file = novels.extractfile(member) if member.name.endswith(".txt") else None
            if file is None:
                continue
            whole = file.read().decode("utf-8", "replace")
            found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", whole)]
            fitting = [part for part in found if 200 < len(part) < 1500]
            yield from rng.sample(fitting, min(PARAGRAPHS, len(fitting)))


def _asked(row: Mapping[str, Any]) -> str:
    return str(row["instruction"]) + ("\n" + row["input"] if row["input"] else "")


def _joined(line: str) -> str:
    text = re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "Marsh")
    text = re.sub(r" ([,.;:!?)\'])", r"\1", text).replace("( ", "(")
    return text.replace(" n't", "n't")
