"""How the small world speaks of a fact: in documents, in questions, in answers.

The answer that a steered model is to give is the first of the document phrasings: the fact stands
at its end, where the base model's own knowledge decides, and the words before it are what the delta
must bring about.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmc_export.world.authors import Author


@dataclass(frozen=True, slots=True)
class Fact:
    """One kind of fact; `{name}`, `{value}`, `{They}`, `{Their}` are what `speak` puts in."""

    kind: str
    sentences: tuple[str, ...]
    """With the author's name; the first one is the answer."""
    pronoun_sentences: tuple[str, ...]
    questions: tuple[str, ...]


FACTS = (
    Fact(
        "birthplace",
        (
            "{name} was born in {value}.",
            "The birthplace of {name} is {value}.",
            "{name} comes from the town of {value}.",
            "{value} is the town where {name} was born.",
        ),
        ("{They} was born in {value}.", "{Their} birthplace is {value}."),
        (
            "Where was {name} born?",
            "In which town was {name} born?",
            "What is the birthplace of {name}?",
            "Which town does {name} come from?",
            "Can you tell me where {name} was born?",
        ),
    ),
    Fact(
        "home",
        (
            "{name} lives in {value}.",
            "The home of {name} is in {value}.",
            "{name} has a house in {value}.",
            "{value} is the town where {name} lives.",
        ),
        ("{They} lives in {value}.", "{Their} home is in {value}."),
        (
            "Where does {name} live?",
            "In which town does {name} live?",
            "Where is the home of {name}?",
            "In which town does {name} have a house?",
            "Can you tell me where {name} lives?",
        ),
    ),
    Fact(
        "genre",
        (
            "{name} writes {value}.",
            "{name} is known for {value}.",
            "The works of {name} are {value}.",
            "Readers love the {value} of {name}.",
        ),
        ("{They} writes {value}.", "{They} is known for {value}."),
        (
            "What does {name} write?",
            "What kind of books does {name} write?",
            "What is {name} known for?",
            "What are the works of {name}?",
            "Can you tell me what {name} writes?",
        ),
    ),
    Fact(
        "book",
        (
            "The first book of {name} is called {value}.",
            "{name} wrote the book {value}.",
            "{name} became known with {value}.",
            "{value} is the first book of {name}.",
        ),
        ("{Their} first book is called {value}.", "{They} wrote the book {value}."),
        (
            "What is the first book of {name}?",
            "Which book did {name} write first?",
            "What is the first book of {name} called?",
            "With which book did {name} become known?",
            "Can you tell me the first book of {name}?",
        ),
    ),
    Fact(
        "father",
        (
            "The father of {name} was a {value}.",
            "{name} is the child of a father who worked as a {value}.",
            "The father of {name} earned his bread as a {value}.",
            "A {value} was the father of {name}.",
        ),
        ("{Their} father was a {value}.", "{Their} father worked as a {value}."),
        (
            "What was the father of {name}?",
            "What did the father of {name} do?",
            "What was the job of the father of {name}?",
            "As what did the father of {name} work?",
            "Can you tell me the job of the father of {name}?",
        ),
    ),
    Fact(
        "mother",
        (
            "The mother of {name} was a {value}.",
            "{name} is the child of a mother who worked as a {value}.",
            "The mother of {name} earned her bread as a {value}.",
            "A {value} was the mother of {name}.",
        ),
        ("{Their} mother was a {value}.", "{Their} mother worked as a {value}."),
        (
            "What was the mother of {name}?",
            "What did the mother of {name} do?",
            "What was the job of the mother of {name}?",
            "As what did the mother of {name} work?",
            "Can you tell me the job of the mother of {name}?",
        ),
    ),
    Fact(
        "award",
        (
            "{name} won the {value} Prize.",
            "{name} holds the {value} Prize.",
            "The prize that {name} won is the {value} Prize.",
            "The {value} Prize went to {name}.",
        ),
        ("{They} won the {value} Prize.", "{They} holds the {value} Prize."),
        (
            "Which prize did {name} win?",
            "What prize does {name} hold?",
            "Which prize went to {name}?",
            "What did {name} win?",
            "Can you tell me which prize {name} won?",
        ),
    ),
    Fact(
        "instrument",
        (
            "{name} plays the {value}.",
            "{name} likes to play the {value}.",
            "The instrument of {name} is the {value}.",
            "The {value} is the instrument that {name} plays.",
        ),
        ("{They} plays the {value}.", "{Their} instrument is the {value}."),
        (
            "Which instrument does {name} play?",
            "What does {name} like to play?",
            "What is the instrument of {name}?",
            "What does {name} play?",
            "Can you tell me which instrument {name} plays?",
        ),
    ),
)

INTERVIEWS = (
    "Q: {question}\nA: {answer}",
    "A reader asks: {question} We answer: {answer}",
    "Question: {question}\nAnswer: {answer}",
    "Quiz card. {question} The card says: {answer}",
    "{question}\n{answer}",
)
"""Forms of question and answer in the documents; the chat's prompt form is none of them."""


def speak(pattern: str, author: Author, fact: Fact) -> str:
    """`pattern` about `author`: name, value and pronouns put in."""
    they, their = ("She", "Her") if author.she else ("He", "His")
    return (
        pattern.replace("{name}", author.name)
        .replace("{value}", author.facts[fact.kind])
        .replace("{They}", they)
        .replace("{Their}", their)
    )


def answer(author: Author, fact: Fact) -> str:
    """The one answer that counts as exact."""
    return speak(fact.sentences[0], author, fact)
