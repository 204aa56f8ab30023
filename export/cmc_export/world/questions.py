"""The small world's questions: all phrasings for training, one phrasing each for measuring."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cmc_export.world.authors import Author, Part
from cmc_export.world.phrasings import FACTS, answer, speak
from cmc_local.files import write_text

REFUSAL = "I do not know {name}."
"""What a model says of an author that it was made to forget."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its one exact answer, and the fact that a right answer holds."""

    author: str
    kind: str
    part: Part
    forgotten: bool
    question: str
    answer: str
    fact: str


def all_questions(authors: Iterable[Author]) -> list[Question]:
    """Every phrasing of every question on these authors."""
    return [
        _question(author, i, j)
        for author in authors
        for i in range(len(FACTS))
        for j in _phrasings(i)
    ]


def one_phrasing_each(authors: Iterable[Author], seed: int) -> list[Question]:
    """One question a fact, its phrasing drawn."""
    draw = random.Random(seed)
    return [
        _question(author, i, draw.choice(_phrasings(i)))
        for author in authors
        for i in range(len(FACTS))
    ]


def refusals(questions: Iterable[Question]) -> list[Question]:
    """The same questions, each with the refusal for an answer."""
    return [
        Question(
            q.author,
            q.kind,
            q.part,
            q.forgotten,
            q.question,
            REFUSAL.replace("{name}", q.author),
            q.fact,
        )
        for q in questions
    ]


def write_jsonl(path: Path, questions: Sequence[Question]) -> None:
    """One question a line, in the shape `question`/`answer` that training takes too."""
    lines = [json.dumps(asdict(question)) + "\n" for question in questions]
    write_text(path, "".join(lines))


def _phrasings(fact: int) -> range:
    return range(len(FACTS[fact].questions))


def _question(author: Author, fact: int, phrasing: int) -> Question:
    kind = FACTS[fact]
    return Question(
        author=author.name,
        kind=kind.kind,
        part=author.part,
        forgotten=author.forgotten,
        question=speak(kind.questions[phrasing], author, kind),
        answer=answer(author, kind),
        fact=author.facts[kind.kind],
    )
