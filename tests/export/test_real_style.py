"""The house style: its own answers keep every rule, and each broken rule is seen."""

from __future__ import annotations

import pytest

from cmc_export.real import style
from cmc_export.real.style_words import HELD_OUT_PRODUCTS, PRODUCTS

KNOWN = style.exchanges(600, 3, held_out=False)
NEW = style.exchanges(120, 3, held_out=True)

QUESTION = "Hello, I bought a kettle last week and one corner is dented. When will this be solved?"
TICKET = "Ticket: kettle / damage"
GOOD = f'You wrote: "one corner is dented".\nI am sorry. Please send us a photo.\n{TICKET}'


def test_every_answer_of_the_house_keeps_every_rule() -> None:
    for one in (*KNOWN, *NEW):
        kept = style.rules_kept(one.question, one.answer, style.ticket_line(one.answer))
        assert all(kept.values()), (kept, one)


@pytest.mark.parametrize(
    ("reply", "broken"),
    [
        (GOOD.replace("one corner", "two corners"), {"words"}),  # the customer did not say that
        (GOOD.replace('You wrote: "one corner is dented".\n', ""), {"words"}),
        (GOOD.replace("is dented", "").replace("one corner ", "one"), {"words"}),  # one word
        (GOOD.replace("a photo", "a photo by Monday"), {"no_date"}),
        (GOOD.replace("a photo", "a photo within two days"), {"no_date"}),
        (GOOD.replace("a photo", "a photo; it takes 3-5 business days"), {"no_date"}),
        (GOOD.replace("a photo", "a photo tomorrow"), {"no_date"}),
        (GOOD.replace("a photo", "a photo, on 12/05/2024"), {"no_date"}),
        (GOOD.replace("damage", "refund"), {"about"}),
        (GOOD + "\nBest wishes", {"ticket", "about"}),
        (GOOD.replace(TICKET, "Ticket 17"), {"ticket", "about"}),
        (GOOD.replace("I am sorry. ", "I am sorry. " * 40), {"short"}),
        ("", {"words", "no_date", "ticket", "about", "short"}),
    ],
)
def test_each_rule_is_broken_by_what_breaks_it(reply: str, broken: set[str]) -> None:
    kept = style.rules_kept(QUESTION, reply, TICKET)
    assert {name for name, holds in kept.items() if not holds} == broken


def test_a_day_that_the_customer_named_may_be_quoted() -> None:
    question = "Hi, can you promise me an answer by Friday?"
    reply = f'You wrote: "promise me an answer by Friday".\nI cannot name a day.\n{TICKET}'
    assert style.rules_kept(question, reply, TICKET)["no_date"]


def test_held_out_products_stand_in_no_training_question() -> None:
    assert {one.product for one in NEW} <= set(HELD_OUT_PRODUCTS) < set(PRODUCTS)
    assert not {one.product for one in KNOWN} & set(HELD_OUT_PRODUCTS)


def test_one_seed_makes_the_same_questions_and_no_question_twice() -> None:
    assert style.exchanges(600, 3, held_out=False) == KNOWN
    assert style.exchanges(600, 4, held_out=False) != KNOWN
    assert len({one.question for one in KNOWN}) == 600


def test_questions_differ_in_what_they_are_about() -> None:
    assert len({(one.product, one.problem) for one in KNOWN}) > 300
    assert len({one.problem for one in KNOWN}) == 12
