"""A house style for support answers, made up here: questions, answers, and rules that score both.

    question  "Hello, I bought a kettle in May and the lid does not close. When will it be fixed?"
    answer    You wrote: "the lid does not close".
              I am sorry about the kettle. Please clean the hinge ... I cannot name a day, but ...
              Ticket: kettle / lid

The rules: the answer begins with the customer's own words; it promises no date; its last line is a
ticket line of what the question is about; it is short. Everything is drawn from the lists below,
so the data belongs to the project.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cmc_export.real.style_words import (
    ASKS,
    DETAILS,
    GREETINGS,
    HELD_OUT_PRODUCTS,
    PROBLEMS,
    PRODUCTS,
    SINCE,
    SORRY,
    UNDATED,
)

QUOTED: Final = re.compile(r'^You wrote: "([^"\n]+)"')
TICKET: Final = re.compile(r"^Ticket: ([a-z][a-z -]*) / ([a-z][a-z -]*)$")
LONGEST: Final = 400
"""Characters of an answer in the house style."""
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_UNITS = "minutes?|hours?|days?|weeks?|weekdays?|months?|years?"
_NUMBERS = (
    r"\d+|one|two|three|four|five|six|seven|eight|nine|ten|a few|a couple of|several|the next"
)
DATED: Final = re.compile(
    rf"\b(?:tomorrow|tonight|today|next (?:week|month|day)|this week|by the end of|"
    rf"(?:by|on|until|before|from) (?:{_DAYS}|{_MONTHS})|"
    rf"(?:within|in|after|takes?|for|to|of) (?:up to |about |around |at most )?"
    rf"(?:an? |the )?(?:{_NUMBERS})?(?:\s*(?:-|to)\s*(?:{_NUMBERS}))? ?(?:business |working )?"
    rf"(?:{_UNITS})|"
    rf"\d{{1,2}}[/.]\d{{1,2}}[/.]\d{{2,4}})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A customer's question and the answer of the house."""

    question: str
    answer: str
    product: str
    problem: str
    """The problem's short name, as on the ticket."""


def exchanges(count: int, seed: int, *, held_out: bool) -> list[Exchange]:
    """Different exchanges, the same for the same seed; `held_out` products stand in no others."""
    rng = random.Random(seed)
    products = [one for one in PRODUCTS if (one in HELD_OUT_PRODUCTS) == held_out]
    found: dict[str, Exchange] = {}
    while len(found) < count:
        one = _exchange(rng, rng.choice(products))
        found.setdefault(one.question, one)
    return list(found.values())


def _exchange(rng: random.Random, product: str) -> Exchange:
    short = rng.choice([*PROBLEMS])
    words, remedies = PROBLEMS[short]
    complaint = rng.choice(words)
    about = rng.choice(DETAILS).format(product=product, since=rng.choice(SINCE))
    ask, wants_date = rng.choice(ASKS)
    greeting = rng.choice(GREETINGS)
    question = " ".join(
        part for part in (greeting, f"{_article(about, product)} and {complaint}.", ask) if part
    )
    sorry = rng.choice(SORRY).format(product=product)
    parts = [_article(sorry, product), rng.choice(remedies)]
    if wants_date:
        parts.append(rng.choice(UNDATED))
    answer = f'You wrote: "{complaint}".\n{" ".join(parts)}\nTicket: {product} / {short}'
    return Exchange(question, answer, product, short)


def _article(text: str, product: str) -> str:
    """`an` in front of a product that begins with a vowel."""
    return text.replace(f" a {product}", f" an {product}") if product[0] in "aeiou" else text


def rules_kept(question: str, reply: str, ticket: str) -> Mapping[str, bool]:
    """Which rules of the house a reply keeps; `ticket` is the line that it should end in.

    words     it begins with `You wrote: "..."`, and what is quoted stands in the question
    no_date   it names no day and no span of time
    ticket    its last line is a ticket line, of any content
    about     that line names the product and the problem as the house does
    short     it is not longer than LONGEST characters
    """
    text = reply.strip()
    lines = text.split("\n")
    quoted = QUOTED.match(text)
    said = quoted.group(1).strip(" .,!?").lower() if quoted else ""
    last = lines[-1].strip()
    return {
        "words": len(said.split()) >= 2 and said in question.lower(),
        "no_date": bool(text) and not DATED.search(_own_words(text)),
        "ticket": len(lines) > 1 and TICKET.match(last) is not None,
        "about": last == ticket,
        "short": 0 < len(text) <= LONGEST,
    }


def _own_words(text: str) -> str:
    """The reply without what it quotes: the customer may name a day."""
    return re.sub(r'"[^"\n]*"', "", text)


def ticket_line(answer: str) -> str:
    """The last line of an answer of the house."""
    return answer.rsplit("\n", 1)[-1]


def records(found: Sequence[Exchange]) -> list[dict[str, str]]:
    """As data files hold them."""
    return [{"question": one.question, "answer": one.answer} for one in found]
