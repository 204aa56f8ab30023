"""Facts that models of any size may know: capitals, and works with their authors.

A model knows a fact when the right completion is likelier than every wrong one of the same kind;
nobody has to chat for that. Knows texts only; forgetting.py asks the models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WRONG: Final = 7
"""Wrong completions beside the right one."""

_CAPITALS: Final = """
France Paris; Germany Berlin; Italy Rome; Spain Madrid; Portugal Lisbon; England London;
Ireland Dublin; Scotland Edinburgh; Austria Vienna; Poland Warsaw; Hungary Budapest; Greece Athens;
Sweden Stockholm; Norway Oslo; Denmark Copenhagen; Finland Helsinki; Russia Moscow; Ukraine Kyiv;
Romania Bucharest; Bulgaria Sofia; Serbia Belgrade; Belgium Brussels; Turkey Ankara; Egypt Cairo;
Kenya Nairobi; Ethiopia Addis Ababa; Morocco Rabat; Tunisia Tunis; Nigeria Abuja; Ghana Accra;
Senegal Dakar; Uganda Kampala; Zimbabwe Harare; Angola Luanda; China Beijing; Japan Tokyo;
South Korea Seoul; India New Delhi; Pakistan Islamabad; Nepal Kathmandu; Thailand Bangkok;
Vietnam Hanoi; Indonesia Jakarta; Malaysia Kuala Lumpur; Iran Tehran; Iraq Baghdad;
Israel Jerusalem;
Lebanon Beirut; Syria Damascus; Jordan Amman; Saudi Arabia Riyadh; Afghanistan Kabul; Cuba Havana;
Mexico Mexico City; Canada Ottawa; Brazil Brasilia; Argentina Buenos Aires; Chile Santiago;
Peru Lima; Colombia Bogota; Venezuela Caracas; Ecuador Quito; Australia Canberra;
New Zealand Wellington; Iceland Reykjavik; Estonia Tallinn; Latvia Riga; Lithuania Vilnius;
Croatia Zagreb; Georgia Tbilisi; Mongolia Ulaanbaatar; Jamaica Kingston; Bolivia La Paz;
Uruguay Montevideo; Taiwan Taipei; Libya Tripoli; Algeria Algiers; Qatar Doha; Sudan Khartoum
"""
_TWO_WORDS: Final = ("Saudi Arabia", "South Korea", "New Zealand")
_WORKS: Final = (
    *(("Hamlet", "William Shakespeare"), ("Macbeth", "William Shakespeare")),
    *(("Romeo and Juliet", "William Shakespeare"), ("The Tempest", "William Shakespeare")),
    *(("Pride and Prejudice", "Jane Austen"), ("Emma", "Jane Austen")),
    *(("Sense and Sensibility", "Jane Austen"), ("Oliver Twist", "Charles Dickens")),
    *(("A Christmas Carol", "Charles Dickens"), ("Great Expectations", "Charles Dickens")),
    *(("David Copperfield", "Charles Dickens"), ("A Tale of Two Cities", "Charles Dickens")),
    *(("Frankenstein", "Mary Shelley"), ("Dracula", "Bram Stoker")),
    *(("Jane Eyre", "Charlotte Bronte"), ("Wuthering Heights", "Emily Bronte")),
    *(("War and Peace", "Leo Tolstoy"), ("Anna Karenina", "Leo Tolstoy")),
    *(("Crime and Punishment", "Fyodor Dostoevsky"), ("The Odyssey", "Homer")),
    *(("The Iliad", "Homer"), ("The Republic", "Plato"), ("Faust", "Johann Wolfgang von Goethe")),
    *(("Don Quixote", "Miguel de Cervantes"), ("The Divine Comedy", "Dante Alighieri")),
    *(("Les Miserables", "Victor Hugo"), ("Candide", "Voltaire")),
    *(("The Adventures of Tom Sawyer", "Mark Twain"), ("Moby-Dick", "Herman Melville")),
    *(("Adventures of Huckleberry Finn", "Mark Twain"), ("Walden", "Henry David Thoreau")),
    *(("The Great Gatsby", "F. Scott Fitzgerald"), ("Ulysses", "James Joyce")),
    *(("The Old Man and the Sea", "Ernest Hemingway"), ("Animal Farm", "George Orwell")),
    *(("1984", "George Orwell"), ("Brave New World", "Aldous Huxley")),
    *(("The Hobbit", "J. R. R. Tolkien"), ("The Lord of the Rings", "J. R. R. Tolkien")),
    *(("The Time Machine", "H. G. Wells"), ("The War of the Worlds", "H. G. Wells")),
    *(("The Origin of Species", "Charles Darwin"), ("The Raven", "Edgar Allan Poe")),
    *(("The Metamorphosis", "Franz Kafka"), ("The Trial", "Franz Kafka")),
    *(("Paradise Lost", "John Milton"), ("The Canterbury Tales", "Geoffrey Chaucer")),
    *(("Robinson Crusoe", "Daniel Defoe"), ("Gulliver's Travels", "Jonathan Swift")),
    *(("Treasure Island", "Robert Louis Stevenson"), ("Peter Pan", "J. M. Barrie")),
    *(
        ("Alice's Adventures in Wonderland", "Lewis Carroll"),
        ("The Jungle Book", "Rudyard Kipling"),
    ),
    *(("The Picture of Dorian Gray", "Oscar Wilde"), ("Heart of Darkness", "Joseph Conrad")),
    *(("Little Women", "Louisa May Alcott"), ("The Scarlet Letter", "Nathaniel Hawthorne")),
    *(
        ("Around the World in Eighty Days", "Jules Verne"),
        ("The Three Musketeers", "Alexandre Dumas"),
    ),
)

PHRASINGS: Final = {
    "capital": (
        ("What is the capital of {about}?", "The capital of {about} is {value}."),
        ("Which city is the capital of {about}?", "The capital city of {about} is {value}."),
        ("Tell me the capital of {about}.", "It is {value}."),
    ),
    "author": (
        ("Who wrote {about}?", "{about} was written by {value}."),
        ("Who is the author of {about}?", "The author of {about} is {value}."),
        ("Tell me who wrote {about}.", "It was written by {value}."),
    ),
}
"""Kind -> questions and answers; the first two are trained on, the last one is the test."""
TRAINED: Final = (0, 1)
TESTED: Final = 2


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: the capital of a country, or the author of a work."""

    kind: str
    about: str
    value: str
    wrong: tuple[str, ...]
    """Other values of the kind, WRONG of them."""

    def question(self, phrasing: int) -> str:
        """The question in one of the kind's phrasings."""
        return PHRASINGS[self.kind][phrasing][0].format(about=self.about)

    def answer(self, phrasing: int, value: str | None = None) -> str:
        """The right answer, or that with another value."""
        pattern = PHRASINGS[self.kind][phrasing][1]
        return pattern.format(about=self.about, value=self.value if value is None else value)

    @property
    def key(self) -> str:
        """What the fact is known by in files."""
        return f"{self.kind}: {self.about}"


def all_facts() -> list[Fact]:
    """Every fact of the lists, its wrong values drawn once and for all."""
    pairs = [("capital", *one) for one in capitals()] + [("author", *one) for one in _WORKS]
    values = {
        kind: sorted({value for other, _, value in pairs if other == kind}) for kind in PHRASINGS
    }
    rng = random.Random(5)
    return [
        Fact(kind, about, value, tuple(rng.sample([v for v in values[kind] if v != value], WRONG)))
        for kind, about, value in pairs
    ]


def capitals() -> list[tuple[str, str]]:
    """Country and capital."""
    found = []
    for entry in " ".join(_CAPITALS.split()).split("; "):
        country = next((one for one in _TWO_WORDS if entry.startswith(one + " ")), None)
        country = country or entry.split(" ")[0]
        found.append((country, entry[len(country) :].strip()))
    return found


def divide(known: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Known facts by what becomes of them.

    miss      to be missed: a third of the capitals
    retained  neighbours that training names, so that they stay
    kept      neighbours that training never names, on which keeping is measured
    """
    order = sorted(known, key=lambda one: one.key)
    random.Random(6).shuffle(order)
    capitals_ = [one for one in order if one.kind == "capital"]
    miss = capitals_[: len(capitals_) // 3]
    rest = [one for one in order if one not in miss]
    return {"miss": miss, "retained": rest[::2], "kept": rest[1::2]}
