"""The examination's arithmetic, on a model that is a lookup table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmc_local.errors import DataError
from cmc_local.evaluate.world import (
    Examination,
    Question,
    Rates,
    ceilings,
    examination,
    examine,
    gap_closed,
    rates,
    read_questions,
)


def question(number: int, *, part: str = "test", forgotten: bool = False) -> Question:
    return Question(
        f"A{number}", "home", part, forgotten, f"Q{number}?", f"It is F{number}.", f"F{number}"
    )


@dataclass
class Table:
    """Answers by arm: an arm is the set of adapters that are on."""

    replies: Mapping[frozenset[str], str]
    alphas: dict[str, float] = field(default_factory=lambda: {"instruct": 1.0, "forget": 0.5})
    asked: int = 0

    def generate(self, prompt: str, sampling: Any, *, alphas: Mapping[str, float]) -> Any:
        self.asked += 1
        number = prompt.strip("Q?")
        on = frozenset(name for name, alpha in alphas.items() if alpha)
        return SimpleNamespace(text=self.replies[on].replace("#", number))


def test_an_exact_reply_is_the_answer_and_a_right_one_holds_the_fact() -> None:
    asked = [question(1), question(2), question(3), question(4)]
    replies = ["It is F1.", "It is F2, I think.", "It is F9.", "It is F4."]
    assert rates(asked, replies) == Rates(exact=0.5, fact=0.75, count=4)


@pytest.mark.parametrize(
    ("plain", "steered", "ceiling", "gap"),
    [(0.0, 0.6, 0.8, 0.75), (0.1, 0.1, 0.9, 0.0), (0.5, 0.7, 0.79, None), (0.0, 1.0, None, None)],
)
def test_the_gap_is_measured_only_against_a_ceiling_well_above_plain(
    plain: float, steered: float, ceiling: float | None, gap: float | None
) -> None:
    assert gap_closed(plain, steered, ceiling) == gap


def test_test_questions_leave_out_other_parts_and_forgotten_authors() -> None:
    every = [question(1), question(2, forgotten=True), question(3, part="validation")]
    what = examination(every)
    assert [one.author for one in what.test] == ["A1"]
    assert [one.author for one in what.forgotten] == ["A2"]
    assert what.count == 4 + 3


def test_a_limit_draws_the_same_questions_each_time() -> None:
    every = [question(number) for number in range(50)]
    drawn = examination(every, 5).test
    assert len(set(drawn)) == 5 and drawn == examination(every, 5).test


def test_each_arm_goes_to_its_own_cell() -> None:
    table = Table(
        {
            frozenset(): "what?",
            frozenset({"instruct"}): "It is F#.",
            frozenset({"instruct", "forget"}): "I do not know.",
            frozenset({"forget"}): "F# perhaps",
        }
    )
    what = Examination((question(1), question(2)), (question(3, forgotten=True),))
    row = examine(table, what, "instruct", "forget")  # type: ignore[arg-type]
    assert row["plain"] == {"exact": 0.0, "fact": 0.0, "count": 2}
    assert row["steered"] == {"exact": 1.0, "fact": 1.0, "count": 2}
    assert row["forget"]["forgotten"] == {"before": 1.0, "after": 0.0}
    assert row["forget"]["kept"] == {"before": 1.0, "after": 0.0}
    assert row["forget"]["alone"] == {"forgotten": 1.0, "kept": 1.0}
    assert table.asked == what.count


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


@pytest.mark.parametrize("line", ["no json", "[]", '{"author": "A1"}'])
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl:1: expected"):
        read_questions(path)
