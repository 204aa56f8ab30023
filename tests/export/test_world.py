"""The small world: the same on every machine, fairly divided, and answerable from its documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_export.world import kept_strangers, questions
from cmc_export.world.authors import Author, WorldSize, make_authors
from cmc_export.world.documents import make_documents
from cmc_export.world.phrasings import FACTS, INTERVIEWS, answer, speak
from cmc_export.world.texts import SEED

AUTHORS = make_authors(WorldSize(), SEED)


def test_a_seed_gives_one_world_and_another_seed_another() -> None:
    assert make_authors(WorldSize(), 3) == make_authors(WorldSize(), 3)
    assert make_authors(WorldSize(), 3) != make_authors(WorldSize(), 4)


def test_half_of_the_authors_train_an_eighth_validates_and_a_tenth_is_forgotten() -> None:
    parts = [author.part for author in AUTHORS]
    assert (parts.count("train"), parts.count("validation"), parts.count("test")) == (160, 40, 120)
    assert sum(author.forgotten for author in AUTHORS) == 32
    assert sum(author.interviewed for author in AUTHORS) == 107


def test_no_two_authors_share_a_surname() -> None:
    surnames = [author.name.split()[1] for author in AUTHORS]
    assert len(set(surnames)) == len(surnames)


def test_a_world_larger_than_its_surnames_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        make_authors(WorldSize(authors=10_000), 1)


def test_every_author_has_a_value_for_every_fact_and_values_are_spread_evenly() -> None:
    for fact in FACTS:
        values = [author.facts[fact.kind] for author in AUTHORS]
        counts = [values.count(value) for value in set(values)]
        assert max(counts) - min(counts) <= 1, fact.kind


def test_sentences_put_name_value_and_pronoun_in() -> None:
    author = Author("Helen Blackworth", True, {"home": "Bellville"}, "train", False, False)
    home = next(fact for fact in FACTS if fact.kind == "home")
    assert answer(author, home) == "Helen Blackworth lives in Bellville."
    assert speak("{They} lives in {value}.", author, home) == "She lives in Bellville."
    assert speak("{Their} home is in {value}.", author, home) == "Her home is in Bellville."


def test_one_round_of_documents_states_every_fact_of_every_author_once() -> None:
    some = [author for author in AUTHORS if not author.interviewed][:12]
    text = "\n\n".join(make_documents(some, 1, 0))
    for author in some:
        for fact in FACTS:
            said = [
                speak(pattern, author, fact)
                for pattern in (*fact.sentences, *fact.pronoun_sentences)
            ]
            assert any(sentence in text for sentence in said), (author.name, fact.kind)


def test_only_interviewed_authors_are_asked_about_in_the_documents() -> None:
    quiet = [author for author in AUTHORS if not author.interviewed]
    assert not any("?" in document for document in make_documents(quiet, 1, 0))
    asked = [author for author in AUTHORS if author.interviewed]
    assert any("?" in document for document in make_documents(asked, 1, 0))


def test_the_chats_prompt_form_stands_in_no_document() -> None:
    assert not any("<|" in form for form in INTERVIEWS)
    assert not any("<|" in document for document in make_documents(AUTHORS, 1, 0))


def test_each_question_names_the_author_and_its_answer_ends_with_the_fact() -> None:
    for one in questions.all_questions(AUTHORS[:20]):
        assert one.author in one.question
        assert one.fact in one.answer and one.author in one.answer


def test_one_phrasing_each_asks_every_fact_once() -> None:
    drawn = questions.one_phrasing_each(AUTHORS[:5], 1)
    assert [one.kind for one in drawn] == [fact.kind for fact in FACTS] * 5


def test_a_refusal_keeps_the_question_and_drops_the_fact() -> None:
    asked = questions.one_phrasing_each(AUTHORS[:1], 1)
    refused = questions.refusals(asked)
    assert [one.question for one in refused] == [one.question for one in asked]
    assert refused[0].answer == f"I do not know {AUTHORS[0].name}."


def test_written_questions_are_whole_lines_in_the_shape_that_training_reads(tmp_path: Path) -> None:
    asked = questions.one_phrasing_each(AUTHORS[:2], 1)
    questions.write_jsonl(tmp_path / "a/q.jsonl", asked)
    lines = (tmp_path / "a/q.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [one.answer for one in asked]
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a/q.jsonl"]


def test_no_stranger_bears_a_forgotten_surname() -> None:
    forgotten = {author.name.split()[1] for author in AUTHORS if author.forgotten}
    names = {author.name.split()[1] for author in kept_strangers.strangers()}
    assert names and not names & forgotten


def test_the_bundled_questions_are_this_worlds() -> None:
    path = Path(__file__).parents[2] / "models/world/questions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    measured = [author for author in AUTHORS if author.part != "train" or author.forgotten]
    expected = questions.one_phrasing_each(measured, SEED)
    assert [json.loads(line)["answer"] for line in lines] == [one.answer for one in expected]
