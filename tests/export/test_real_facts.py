"""Facts: read from the list, divided, and ranked."""

from __future__ import annotations

from cmc_export.real import facts, forgetting


def test_countries_of_two_words_keep_them() -> None:
    found = dict(facts.capitals())
    assert found["South Korea"] == "Seoul"
    assert found["Saudi Arabia"] == "Riyadh"
    assert found["Mexico"] == "Mexico City"
    assert found["Ethiopia"] == "Addis Ababa"
    assert found["France"] == "Paris"
    assert len(found) > 60


def test_wrong_values_are_of_the_kind_and_never_the_right_one() -> None:
    every = facts.all_facts()
    cities = set(dict(facts.capitals()).values())
    for one in every:
        assert len(set(one.wrong)) == facts.WRONG
        assert one.value not in one.wrong
        assert (set(one.wrong) <= cities) == (one.kind == "capital")
    assert facts.all_facts() == every


def test_a_fact_speaks() -> None:
    one = facts.Fact("capital", "France", "Paris", ("Rome",))
    assert one.question(0) == "What is the capital of France?"
    assert one.answer(0) == "The capital of France is Paris."
    assert one.answer(facts.TESTED, "Rome") == "It is Rome."


def test_a_third_of_the_capitals_is_to_be_missed_and_nothing_is_in_two_parts() -> None:
    every = facts.all_facts()
    parts = facts.divide(every)
    assert len(parts["miss"]) == len(facts.capitals()) // 3
    assert {one.kind for one in parts["miss"]} == {"capital"}
    assert {one.kind for one in parts["kept"]} == {"capital", "author"}
    keys = [one.key for some in parts.values() for one in some]
    assert sorted(keys) == sorted(one.key for one in every)
    assert facts.divide([*reversed(every)]) == parts


def test_the_rank_counts_what_is_as_likely_or_likelier() -> None:
    assert forgetting.rank([1.0, 2.0, 3.0]) == 1
    assert forgetting.rank([2.0, 1.0, 3.0]) == 2
    assert forgetting.rank([2.0, 2.0, 1.0]) == 3
