"""The examination's arithmetic, and its questions put to a model that echoes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmc_local.errors import DataError
from cmc_local.evaluate.world import (
    Examination,
    Question,
    Rates,
    answers,
    ceilings,
    examination,
    metrics,
    rates,
    read_questions,
)
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits
from fakes import END, NEWLINE, FakeBase


def question(number: int, *, part: str = "test", forgotten: bool = False) -> Question:
    return Question(
        f"A{number}", "home", part, forgotten, f"Q{number}?", f"It is F{number}.", f"F{number}"
    )


def test_an_exact_reply_is_the_answer_and_a_right_one_holds_the_fact() -> None:
    asked = [question(1), question(2), question(3), question(4)]
    replies = ["It is F1.", "It is F2, I think.", "It is F9.", "It is F4."]
    assert rates(asked, replies) == Rates(exact=0.5, fact=0.75, count=4)


def test_test_questions_leave_out_other_parts_and_forgotten_authors() -> None:
    every = [question(1), question(2, forgotten=True), question(3, part="validation")]
    what = examination(every)
    assert [one.author for one in what.test] == ["A1"]
    assert [one.author for one in what.forgotten] == ["A2"]
    assert what.count == 2
    other = examination(every, part="validation")
    assert [one.author for one in other.test] == ["A3"] and other.forgotten == what.forgotten


def test_a_limit_draws_the_same_questions_each_time() -> None:
    every = [question(number) for number in range(50)]
    drawn = examination(every, 5).test
    assert len(set(drawn)) == 5 and drawn == examination(every, 5).test


def test_a_row_has_the_shares_of_both_kinds_of_questions() -> None:
    what = Examination((question(1), question(2)), tuple(question(n) for n in (3, 4, 5, 6)))
    found = metrics(what, ["It is F1.", "F2?"], ["It is F3.", "no", "no", "no"])
    # 1 of 2 to the letter, 2 of 2 with the fact; 1 of 4 forgotten facts is still there.
    assert found == {"exact": 0.5, "fact": 1.0, "forgotten_fact": 0.25, "kept_fact": 1.0}


def test_answers_come_in_the_order_of_the_questions() -> None:
    base = FakeBase(_echo)
    asked = [replace(question(n), question=text) for n, text in enumerate(("a", "b", "ab"))]
    with SteeredModel(base, base.sampler, limits=Limits(parallel=2)) as model:
        assert answers(model, asked, 0.0) == ["a", "b", "ab"]


def _echo(seen: tuple[int, ...]) -> tuple[float, ...]:
    """Says the first token again, then ends; the plain form asks by the text and a newline."""
    said = seen.index(NEWLINE) + 1 < len(seen)
    return tuple(float(token == (END if said else seen[0])) for token in range(5))


def test_ceilings_count_only_models_with_every_prediction(tmp_path: Path) -> None:
    what = Examination((question(1), question(2)), ())
    rows = [
        {"model": "whole", "question": "Q1?", "prediction": "It is F1."},
        {"model": "whole", "question": "Q2?", "prediction": "F2"},
        {"model": "part", "question": "Q1?", "prediction": "It is F1."},
    ]
    path = tmp_path / "ceilings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert ceilings(path, what) == {"whole": Rates(0.5, 1.0, 2)}
    assert ceilings(tmp_path / "none.jsonl", what) == {}


@pytest.mark.parametrize("line", ["no json", '{"author": "A1"}'])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl:1: expected"):
        read_questions(path)
