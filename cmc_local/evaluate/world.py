"""The small world's examination: exact answers and right facts, plain and steered, model by model.

    questions.jsonl --> answers(model, alphas) --> Rates --> table
    ceilings.jsonl  --> (predictions of each model fine-tuned on the same data) --^

Greedy throughout. Knows SteeredModel and files of questions; nothing of training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cmc_local.errors import DataError
from cmc_local.settings import Sampling
from cmc_local.steered import SteeredModel

GREEDY = Sampling(temperature=0.0, max_tokens=40)
MIN_CEILING = 0.3
"""How far above the plain model a ceiling must be for a gap to mean anything."""

Told = Callable[[], None]
"""Called after each question, for a progress bar."""


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
        """How many replies `examine` asks of each model."""
        return 4 * len(self.test) + 3 * len(self.forgotten)


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file; DataError names a line that is none."""
    names = {field.name for field in fields(Question)}
    questions = []
    for number, record in _records(path):
        if not names <= record.keys():
            raise DataError(f"{path}:{number}: expected the fields {', '.join(sorted(names))}")
        questions.append(Question(**{name: record[name] for name in names}))
    return questions


def examination(questions: Iterable[Question], limit: int | None = None) -> Examination:
    """The test questions and the forgotten authors' ones; `limit` draws that many of each."""
    every = list(questions)
    test = [q for q in every if q.part == "test" and not q.forgotten]
    return Examination(_draw(test, limit), _draw([q for q in every if q.forgotten], limit))


def answers(
    model: SteeredModel,
    questions: Sequence[Question],
    alphas: Mapping[str, float] | float,
    told: Told = lambda: None,
) -> list[str]:
    """The model's greedy reply to each question, alone in its conversation."""
    replies = []
    for one in questions:
        replies.append(model.generate(one.question, GREEDY, alphas=alphas).text.strip())
        told()
    return replies


def rates(questions: Sequence[Question], replies: Sequence[str]) -> Rates:
    """Shares of exact replies and of replies with the right fact."""
    count = len(questions)
    exact = sum(reply == q.answer for q, reply in zip(questions, replies, strict=True))
    fact = sum(q.fact in reply for q, reply in zip(questions, replies, strict=True))
    return Rates(exact / max(count, 1), fact / max(count, 1), count)


def gap_closed(plain: float, steered: float, ceiling: float | None) -> float | None:
    """(steered - plain) / (fine-tuned - plain); None where the ceiling is too near to plain.

    >>> gap_closed(plain=0.0, steered=0.6, ceiling=0.8)
    0.75
    """
    if ceiling is None or ceiling - plain < MIN_CEILING:
        return None
    return round((steered - plain) / (ceiling - plain), 4)


def examine(
    model: SteeredModel, what: Examination, instruct: str, forget: str, told: Told = lambda: None
) -> dict[str, Any]:
    """One base model's row: plain and steered rates, and what `forget` does alone and on top.

    `instruct` and `forget` are the adapters' names in `model`; each acts with its own alpha.
    """
    own = dict(model.alphas)
    off = dict.fromkeys(own, 0.0)
    only_instruct, only_forget = {**own, forget: 0.0}, {**own, instruct: 0.0}

    def measured(questions: Sequence[Question], alphas: Mapping[str, float]) -> Rates:
        return rates(questions, answers(model, questions, alphas, told))

    steered = measured(what.test, only_instruct)
    kept_after = measured(what.test, own)
    before, after = measured(what.forgotten, only_instruct), measured(what.forgotten, own)
    return {
        "plain": asdict(measured(what.test, off)),
        "steered": asdict(steered),
        "forget": {
            "forgotten": {"before": before.fact, "after": after.fact},
            "kept": {"before": steered.fact, "after": kept_after.fact},
            "exact_kept": {"before": steered.exact, "after": kept_after.exact},
            "alone": {
                "forgotten": measured(what.forgotten, only_forget).fact,
                "kept": measured(what.test, only_forget).fact,
            },
        },
    }


def ceilings(path: Path, what: Examination) -> dict[str, Rates]:
    """Each fine-tuned model's rates, from the predictions that `make ceilings` wrote.

    A model counts only if it has a prediction for every test question. No file, no ceilings.
    """
    if not path.is_file():
        return {}
    predictions: dict[str, dict[str, str]] = {}
    for number, record in _records(path):
        try:
            predictions.setdefault(record["model"], {})[record["question"]] = record["prediction"]
        except KeyError as error:
            raise DataError(f"{path}:{number}: the field {error} is missing") from None
    found = {}
    for name, by_question in predictions.items():
        replies = [by_question.get(q.question) for q in what.test]
        complete = [reply for reply in replies if reply is not None]
        if len(complete) == len(replies):
            found[name] = rates(what.test, complete)
    return found


def _records(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a JSONL file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected one JSON object")
        yield number, record


def _draw(questions: Sequence[Question], limit: int | None) -> tuple[Question, ...]:
    """`limit` of the questions, drawn the same way each time."""
    if limit is None or limit >= len(questions):
        return tuple(questions)
    return tuple(random.Random(0).sample(questions, limit))
