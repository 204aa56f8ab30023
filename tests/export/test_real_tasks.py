"""What a reply is worth, by hand."""

from __future__ import annotations

import pytest

from cmc_export.real import tasks


@pytest.mark.parametrize(
    ("reply", "exact", "within"),
    [
        ("Positive", 1, 1),
        (" positive.\n", 1, 1),
        ("The review is positive.", 0, 1),
        ("Positive or negative?", 0, 0),
        ("Negative", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_label_counts_alone(reply: str, exact: float, within: float) -> None:
    found = tasks.score_label({"question": "?", "answer": "Positive"}, reply)
    assert found == {"exact": exact, "within": within}


@pytest.mark.parametrize(
    ("reply", "form", "right"),
    [
        ("3 + 4 = 7\n#### 7", 1, 1),
        ("3 + 4 = 8\n#### 8", 1, 0),
        ("#### 1,007", 1, 0),
        ("It is 7.", 0, 0),
        ("#### 7\nThat is all.", 0, 0),
        ("#### seven", 0, 0),
    ],
)
def test_the_form_is_the_last_line(reply: str, form: float, right: float) -> None:
    record = {"question": "?", "answer": "3 + 4 = 7 apples\n#### 7"}
    assert tasks.score_format(record, reply) == {"form": form, "right": right}


def test_style_is_the_share_of_rules() -> None:
    record = {
        "question": "My fan is loud and it squeaks.",
        "answer": 'You wrote: "it squeaks".\nSorry.\nTicket: fan / noise',
    }
    assert tasks.score_style(record, record["answer"])["all"] == 1
    found = tasks.score_style(record, "Sorry about that.")  # no date, and short
    assert (found["rules"], found["all"]) == (2 / 5, 0)


def test_refusals() -> None:
    assert tasks.is_refusal("I'm sorry, but I cannot help with that.")
    assert tasks.is_refusal("As an AI language model, ...")
    assert not tasks.is_refusal("I am sorry about the kettle.")
    assert not tasks.is_refusal("Paris")


def test_every_task_has_five_system_texts_that_differ() -> None:
    for task in tasks.TASKS.values():
        assert len(set(task.systems)) == 5
