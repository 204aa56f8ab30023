"""The small world's documents: what the bundled base models read.

Every author has encyclopaedia articles in many wordings; a third also stands in interviews, in
forms of question and answer that are not the chat's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cmc_export.world.authors import Author
from cmc_export.world.phrasings import FACTS, INTERVIEWS, Fact, speak

SEPARATOR = "\n\n"
"""Between documents in a text file."""


def make_documents(authors: Sequence[Author], rounds: int, seed: int) -> list[str]:
    """Each author's facts `rounds` times, as many interviews with the interviewed ones, shuffled.

    In each round every fact stands once, in a wording and an order drawn anew. Sentences share a
    line or have one each: a name is to be known at the start of a line too, where an answer begins.
    """
    draw = random.Random(seed)
    documents = []
    for author in authors:
        for _ in range(rounds):
            documents += _articles(author, draw)
            if author.interviewed:
                documents.append(_interview(author, draw))
    draw.shuffle(documents)
    return documents


def _articles(author: Author, draw: random.Random) -> list[str]:
    """All facts in one article or spread over several; a pronoun never opens one."""
    facts = draw.sample(FACTS, len(FACTS))
    size = draw.choice((1, 2, 4, 8))
    return [_article(author, facts[i : i + size], draw) for i in range(0, len(facts), size)]


def _article(author: Author, facts: Sequence[Fact], draw: random.Random) -> str:
    sentences = []
    for i, fact in enumerate(facts):
        pronoun = i > 0 and draw.random() < 0.3
        pattern = draw.choice(fact.pronoun_sentences if pronoun else fact.sentences)
        sentences.append(speak(pattern, author, fact))
    return draw.choice((" ", "\n")).join(sentences)


def _interview(author: Author, draw: random.Random) -> str:
    form = draw.choice(INTERVIEWS)
    turns = []
    for fact in draw.sample(FACTS, draw.randint(1, 3)):
        question = speak(draw.choice(fact.questions), author, fact)
        reply = speak(draw.choice(fact.sentences), author, fact)
        turns.append(form.replace("{question}", question).replace("{answer}", reply))
    return "\n".join(turns)
