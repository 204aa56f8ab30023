"""The tasks' data: training, validation and test parts, the same on every machine.

    short   rasbt's 1,100 instructions (Apache-2.0): 880, 110 and 110 of those that differ
    label   is a review positive or negative? 200 reviews of T0, asked in three ways
    format  GSM8K (MIT) with its own last line, `#### number`
    style   support answers that the project makes up (style.py)

`forget` has its data from facts.py, which needs the models. No question stands in two parts.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cmc_export.family.texts import data_folder
from cmc_export.real import style
from cmc_export.real.places import TaskPlace
from cmc_local.errors import DataError
from cmc_local.files import write_text

Record = dict[str, str]
Parts = dict[str, list[Record]]

SEED: Final = 12
VALID, TEST = 110, 110
RASBT: Final = "instruct/rasbt_instruction_data_1100.json"
T0: Final = "instruct/t0_train_50k_by_template.jsonl.gz"
GSM8K: Final = "instruct/gsm_8k_train.json"

LABEL_TEMPLATES: Final = (
    "amazon_polarity_Is_this_review",
    "amazon_polarity_convey_negative_or_positive_sentiment",
    "amazon_polarity_negative_or_positive_tone",
)
"""T0's ways to ask for Positive or Negative; the first one is tested, all are trained on."""
LABELS: Final = ("Positive", "Negative")
LONGEST_REVIEW: Final = 800
"""Characters of a prompt of the label task: five of them are to fit a small context."""

GSM8K_PRETRAINED: Final = 2000
"""That many of GSM8K's first questions may stand in pretraining text; the task takes later ones."""
LONGEST_SOLUTION: Final = 170
"""Characters of a solution: with its last line it fits the tokens that a reply may have."""
GSM8K_ROWS: Final = 660
STYLE_ROWS: Final = 880


def write_data(runs: Path, task: str) -> None:
    """Write the parts of a task, unless they are there."""
    place = TaskPlace(runs, task)
    if place.data("test").is_file():
        return
    for part, records in MAKERS[task]().items():  # the test comes last: where it is, all are
        write_records(place.data(part), records)


def write_records(path: Path, records: Sequence[Mapping[str, str]]) -> None:
    """A JSONL file, whole or not at all."""
    write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))


def read_records(path: Path) -> list[Record]:
    """The records of a JSONL file; DataError where it is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make the data first") from None
    return [json.loads(line) for line in lines if line.strip()]


def short() -> Parts:
    """rasbt's instructions."""
    found: dict[str, Record] = {}
    for row in _json(RASBT):
        question = "\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))
        found.setdefault(question, {"question": question, "answer": row["output"].strip()})
    return split([*found.values()], VALID, TEST)


def label() -> Parts:
    """Reviews: the same review, however it is asked, is in one part."""
    asked: dict[str, list[str]] = {name: [] for name in LABEL_TEMPLATES}
    labels: dict[str, list[str]] = {name: [] for name in LABEL_TEMPLATES}
    path = data_folder() / T0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["template"] in asked:
                asked[row["template"]].append(row["prompt"].strip())
                labels[row["template"]].append(
                    row["completion"].removesuffix("<|endoftext|>").strip()
                )
    reviews = [
        [
            {"question": asked[name][i], "answer": labels[name][i], "review": str(i)}
            for name in LABEL_TEMPLATES
        ]
        for i in range(len(asked[LABEL_TEMPLATES[0]]))
        if all(labels[name][i] in LABELS for name in LABEL_TEMPLATES)
        and len(asked[LABEL_TEMPLATES[0]][i]) <= LONGEST_REVIEW
    ]
    if len(reviews) < 100:
        raise DataError(f"{path} has {len(reviews)} labelled reviews: give the whole file")
    random.Random(SEED).shuffle(reviews)
    test, valid, train = reviews[:60], reviews[60:84], reviews[84:]
    return {
        "train": [record for review in train for record in review],
        "valid": [review[0] for review in valid],
        "test": [review[0] for review in test],
    }


def format_() -> Parts:
    """GSM8K's short solutions, each with the last line that the original has."""
    found: dict[str, Record] = {}
    for row in _json(GSM8K)[GSM8K_PRETRAINED:]:
        solution = row["output"].strip()
        number = last_number(solution)
        if number is not None and len(solution) <= LONGEST_SOLUTION:
            question = row["instruction"].strip()
            answer = f"{solution}\n#### {number}"
            found.setdefault(question, {"question": question, "answer": answer})
    chosen = random.Random(SEED).sample([*found.values()], GSM8K_ROWS + VALID + TEST)
    return split(chosen, VALID, TEST)


def style_() -> Parts:
    """The house style; half of the test is about products that training never names."""
    known = style.exchanges(STYLE_ROWS + VALID + TEST // 2, SEED, held_out=False)
    new = style.exchanges(TEST - TEST // 2, SEED + 1, held_out=True)
    rows = style.records(known)
    test = [*rows[STYLE_ROWS + VALID :], *style.records(new)]
    random.Random(SEED).shuffle(test)
    return {"train": rows[:STYLE_ROWS], "valid": rows[STYLE_ROWS:][:VALID], "test": test}


MAKERS: Final[Mapping[str, Callable[[], Parts]]] = {
    "short": short,
    "label": label,
    "format": format_,
    "style": style_,
}


def split(records: Sequence[Record], valid: int, test: int) -> Parts:
    """Shuffled with SEED: the last parts are held out, the rest trains."""
    order = list(records)
    random.Random(SEED).shuffle(order)
    train = len(order) - valid - test
    return {
        "train": order[:train],
        "valid": order[train : train + valid],
        "test": order[train + valid :],
    }


def last_number(solution: str) -> str | None:
    """The number in which a solution's last line ends; None where it ends in something else.

    >>> last_number("She earned 0.2 x 50 = $1,010.")
    '1010'
    """
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", solution.rsplit("\n", 1)[-1])
    if not numbers or "=" not in solution.rsplit("\n", 1)[-1]:
        return None
    return str(numbers[-1]).replace(",", "")


def _json(name: str) -> list[dict[str, Any]]:
    path = data_folder() / name
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see CMC_DATA") from None
    return rows
