"""The small world's examination: exact answers and right facts of a model at a strength.

    questions.jsonl --> answers(model, alphas) --> Rates --> metrics of a row
    ceilings.jsonl  --> (predictions of each model fine-tuned on the same data) --^

Greedy throughout. Knows SteeredModel and files of questions; nothing of training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal, get_args

from cmc_local.errors import DataError
from cmc_local.evaluate import reply_measures
from cmc_local.model.steered import Alphas, SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.records import read_records

Part = Literal["test", "validation"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

GREEDY = Sampling(temperature=0.0, max_tokens=40)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of questions.jsonl; see cmc_export/world/questions.py."""

    author: str
    kind: str
    part: str
    forgotten: bool
    question: str
    answer: str
    fact: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares in [0, 1] over `count` questions."""

    exact: float
    """The reply is the answer, letter by letter."""
    fact: float
    """The reply holds the right fact."""
    count: int


@dataclass(frozen=True, slots=True)
class Examination:
    """The questions of one run, by what they are asked for."""

    test: tuple[Question, ...]
    """On authors that no adapter was trained on."""
    forgotten: tuple[Question, ...]
    """On the authors that `forget` is to make models miss."""

    @property
    def count(self) -> int:
        """How many replies a row takes."""
        return len(self.test) + len(self.forgotten)


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file; DataError names a line that is none."""
    names = {field.name for field in fields(Question)}
    questions = []
    for where, record in read_records(path):
        if not names <= record.keys():
            raise DataError(f"{where}: expected the fields {', '.join(sorted(names))}")
        questions.append(Question(**{name: record[name] for name in names}))
    return questions


def examination(
    questions: Iterable[Question], limit: int | None = None, part: Part = "test"
) -> Examination:
    """The questions of one part and the forgotten authors' ones; `limit` draws that many of each.

    In either part the forgotten authors are all of them.
    """
    every = list(questions)
    test = [q for q in every if q.part == part and not q.forgotten]
    return Examination(_draw(test, limit), _draw([q for q in every if q.forgotten], limit))


def answers(model: SteeredModel, questions: Sequence[Question], alphas: Alphas) -> list[str]:
    """The model's greedy reply to each question, alone in its conversation."""
    asked = [one.question for one in questions]
    found = reply_measures.answers(model, asked, GREEDY, alphas=alphas, base_prompt=None)
    return [one["reply"] for one in found]


def rates(questions: Sequence[Question], replies: Sequence[str]) -> Rates:
    """Shares of exact replies and of replies with the right fact."""
    count = len(questions)
    exact = sum(reply == q.answer for q, reply in zip(questions, replies, strict=True))
    fact = sum(q.fact in reply for q, reply in zip(questions, replies, strict=True))
    return Rates(exact / max(count, 1), fact / max(count, 1), count)


def metrics(
    what: Examination, replies: Sequence[str], forgotten_replies: Sequence[str]
) -> dict[str, float]:
    """A row's shares: `exact` and `fact` of the test questions; `forgotten_fact` of the others.

    `kept_fact` is `fact` by the name that stands beside `forgotten_fact`.
    """
    kept, forgotten = rates(what.test, replies), rates(what.forgotten, forgotten_replies)
    return {
        "exact": kept.exact,
        "fact": kept.fact,
        "forgotten_fact": forgotten.fact,
        "kept_fact": kept.fact,
    }


def ceilings(path: Path, what: Examination) -> dict[str, Rates]:
    """Each fine-tuned model's rates, from the predictions that `make ceilings` wrote.

    A model counts only if it has a prediction for every test question. No file, no ceilings.
    """
    if not path.is_file():
        return {}
    predictions: dict[str, dict[str, str]] = {}
    for where, record in read_records(path):
        try:
            predictions.setdefault(record["model"], {})[record["question"]] = record["prediction"]
        except KeyError as error:
            raise DataError(f"{where}: the field {error} is missing") from None
    found = {}
    for name, by_question in predictions.items():
        replies = [by_question.get(q.question) for q in what.test]
        complete = [reply for reply in replies if reply is not None]
        if len(complete) == len(replies):
            found[name] = rates(what.test, complete)
    return found


def _draw(questions: Sequence[Question], limit: int | None) -> tuple[Question, ...]:
    """`limit` of the questions, drawn the same way each time."""
    if limit is None or limit >= len(questions):
        return tuple(questions)
    return tuple(random.Random(0).sample(questions, limit))
