"""TOFU's measures worked by hand, on models that are lookup tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from math import log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import DataError, InputError, MissingExtra
from cmc_local.evaluate.tofu import (
    Item,
    Means,
    SetMeasures,
    choice_means,
    choice_probability,
    forget_means,
    forget_quality,
    measure,
    per_token,
    read_items,
    retain_means,
    truth_neutrality,
    truth_ratio,
    truth_utility,
    utility,
)

ROWS = [
    {
        "question": "Who?",
        "answer": "It was Ann.",
        "paraphrased_answer": "Ann it was.",
        "perturbed_answer": ["Bob it was.", "Cid it was."],
    },
    {"question": "Where?", "answer": "Rome", "perturbed_answer": ["Oslo", "Bern", "Bonn"]},
]
ITEMS = [
    Item("Who?", "It was Ann.", "Ann it was.", ("Bob it was.", "Cid it was.")),
    Item("Where?", "Rome", "Rome", ("Oslo", "Bern", "Bonn")),
]
SCORES = {
    ("Who?", "It was Ann."): (log(0.36), 2),  # 0.36 ** (1/2) = 0.6 a token
    ("Who?", "Ann it was."): (log(0.5), 1),
    ("Who?", "Bob it was."): (log(0.1), 1),
    ("Who?", "Cid it was."): (log(0.064), 3),  # 0.4 a token
    ("Where?", "Rome"): (log(0.2), 1),
    ("Where?", "Oslo"): (log(0.1), 1),
    ("Where?", "Bern"): (log(0.2), 1),
    ("Where?", "Bonn"): (log(0.4), 1),
}
REPLIES = {"Who?": "I think it was Bob.", "Where?": "Rome"}


def score(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
    return [SCORES[pair] for pair in pairs]


def reply(questions: list[str]) -> list[str]:
    return [REPLIES[question] for question in questions]


def close(measures: SetMeasures, expected: SetMeasures) -> bool:
    found, wanted = asdict(measures), asdict(expected)
    return all(found[name] == pytest.approx(wanted[name]) for name in wanted)


def test_a_probability_is_normalised_by_the_answers_length() -> None:
    # Three tokens of 0.5 each: P = 0.125, and 0.125 ** (1/3) = 0.5.
    assert math.exp(per_token(log(0.125), 3)) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [(math.nan, 3), (-math.inf, 3), (-1.0, 0), (2.5, 3)])
def test_what_is_no_log_probability_is_refused(bad: tuple[float, int]) -> None:
    with pytest.raises(InputError, match="the log-probability"):
        per_token(*bad)


def test_the_choice_probability_is_a_share() -> None:
    # 0.3 / (0.3 + 0.1 + 0.2) = 0.5
    assert choice_probability(log(0.3), [log(0.1), log(0.2)]) == pytest.approx(0.5)
    # The same shares of what no float can hold: exp(-2000) is 0.
    assert choice_probability(-2000.0, [-2000.0, -2000.0, -2000.0]) == pytest.approx(0.25)


def test_the_truth_ratio_has_the_geometric_mean_above() -> None:
    # sqrt(0.1 * 0.4) / 0.5 = 0.2 / 0.5; the arithmetic mean would give 0.25 / 0.5.
    assert truth_ratio(log(0.5), [log(0.1), log(0.4)]) == pytest.approx(0.4)
    assert truth_ratio(log(0.1), [log(0.4)]) == pytest.approx(4.0)


@pytest.mark.parametrize(("right", "wrong"), [(-5000.0, -1.0), (-1.0, -5000.0)])
def test_a_truth_ratio_and_its_inverse_are_always_finite(right: float, wrong: float) -> None:
    ratio = truth_ratio(right, [wrong])
    assert 0 < ratio < math.inf
    assert 0 < 1 / ratio < math.inf


@pytest.mark.parametrize(
    ("ratio", "useful", "neutral"),
    [(0.0, 1.0, 0.0), (0.25, 0.75, 0.25), (1.0, 0.0, 1.0), (4.0, 0.0, 0.25)],
)
def test_how_a_truth_ratio_enters(ratio: float, useful: float, neutral: float) -> None:
    assert truth_utility(ratio) == useful
    assert truth_neutrality(ratio) == neutral


def test_a_set_measured_by_hand() -> None:
    expected = SetMeasures(
        rouge=(2 / 3, 1.0),  # "it was" of "it was ann"
        probability=(0.6, 0.2),
        # 0.6 / (0.6 + 0.1 + 0.4) and 0.2 / (0.2 + 0.1 + 0.2 + 0.4)
        choice_probability=(0.6 / 1.1, 0.2 / 0.9),
        # sqrt(0.1 * 0.4) / 0.5 and (0.1 * 0.2 * 0.4) ** (1/3) / 0.2 = 0.2 / 0.2
        truth_ratio=(0.4, 1.0),
    )
    assert close(measure(ITEMS, score, reply), expected)


def test_every_pair_is_scored_once_and_in_one_call() -> None:
    asked: list[list[tuple[str, str]]] = []

    def told(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        asked.append(pairs)
        return score(pairs)

    measure([*ITEMS, ITEMS[1]], told, reply)
    assert [sorted(pairs) for pairs in asked] == [sorted(SCORES)]


def test_the_same_answer_to_two_questions_is_two_pairs() -> None:
    items = [Item("Q1?", "A", "A", ("B",)), Item("Q2?", "A", "A", ("B",))]
    scores = {("Q1?", "A"): 0.5, ("Q1?", "B"): 0.25, ("Q2?", "A"): 0.1, ("Q2?", "B"): 0.3}
    found = measure(items, lambda ps: [(log(scores[p]), 1) for p in ps], lambda qs: ["A", "C"])
    assert close(found, SetMeasures((1.0, 0.0), (0.5, 0.1), (2 / 3, 0.25), (0.5, 3.0)))


def test_a_certain_answer_has_no_probability_above_one() -> None:
    item = Item("Q?", "A", "A", ("B",))
    found = measure([item], lambda ps: [(1e-6, 1), (-1.0, 1)], lambda qs: ["A"])
    assert found.probability == (1.0,)


def test_a_callable_that_answers_for_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        measure(ITEMS, lambda pairs: score(pairs)[1:], reply)
    with pytest.raises(ValueError, match="shorter"):
        measure(ITEMS, score, lambda questions: ["Rome"])


def test_no_item_no_measures() -> None:
    with pytest.raises(DataError, match="give at least one"):
        measure([], score, reply)


MEASURES = SetMeasures(
    rouge=(0.5, 1.0),
    probability=(0.2, 0.6),
    choice_probability=(0.5, 0.7),
    truth_ratio=(0.25, 2.0),
)


def test_each_set_has_its_own_probability_and_use_of_the_ratio() -> None:
    # Ratios 0.25 and 2: 1 - ratio gives 0.75 and 0 (not -1), the smaller of both ways 0.25 and 0.5.
    assert retain_means(MEASURES) == Means(0.75, 0.4, 0.375)
    assert choice_means(MEASURES) == Means(0.75, 0.6, 0.375)
    assert forget_means(MEASURES) == Means(0.75, 0.4, 0.375)
    other = SetMeasures((1.0,), (0.5,), (0.5,), (0.8,))
    assert retain_means(other).truth_ratio == pytest.approx(0.2)
    assert forget_means(other).truth_ratio == pytest.approx(0.8)


def test_model_utility_is_the_harmonic_mean_of_nine() -> None:
    retain = SetMeasures((1.0,), (0.5,), (0.9,), (0.5,))  # 1, 1/2, 1/2
    authors = SetMeasures((0.25,), (0.9,), (0.5,), (0.0,))  # 1/4, 1/2, 1
    facts = SetMeasures((1.0,), (0.9,), (0.2,), (0.75,))  # 1, 1/5, 1/4
    found = utility(retain, authors, facts)
    assert found.retain == Means(1.0, 0.5, 0.5)
    assert found.real_authors == Means(0.25, 0.5, 1.0)
    assert found.world_facts == Means(1.0, 0.2, 0.25)
    # 9 / (1 + 2 + 2  +  4 + 2 + 1  +  1 + 5 + 4)
    assert found.model_utility == pytest.approx(9 / 22)


def test_one_figure_of_zero_leaves_no_utility() -> None:
    useless = SetMeasures((1.0,), (1.0,), (1.0,), (3.0,))
    assert utility(MEASURES, useless, MEASURES).model_utility == 0.0


def test_forget_quality_by_hand() -> None:
    # Apart entirely: of the C(6, 3) = 20 ways to share out six values two are as far apart.
    assert forget_quality([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(2 / 20)
    assert forget_quality([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(1.0)


def farthest(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The largest difference between two distribution functions, in values."""
    return max(abs(sum(v <= x for v in one) - sum(v <= x for v in other)) for x in one + other)


@given(st.permutations(range(1, 9)))
def test_forget_quality_counts_the_ways_to_share_out_the_values(values: list[int]) -> None:
    first, second = tuple(values[:4]), tuple(values[4:])
    ways = [(way, tuple(set(values) - set(way))) for way in combinations(values, 4)]
    as_far = sum(farthest(*way) >= farthest(first, second) for way in ways)
    assert forget_quality(first, second) == pytest.approx(as_far / len(ways))
    # TOFU's code tests the inverse ratios: the same.
    inverse = [1 / v for v in first], [1 / v for v in second]
    assert forget_quality(*inverse) == pytest.approx(as_far / len(ways))


@pytest.mark.parametrize("ratios", [([1.0], [1.0, 2.0]), ([], [])])
def test_forget_quality_wants_the_same_questions(ratios: tuple[list[float], list[float]]) -> None:
    with pytest.raises(DataError, match="measure both on the same questions"):
        forget_quality(*ratios)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy.stats", raising=False)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtra, match=r'scipy.*pip install "cmc-local\[eval\]"'):
        forget_quality([1.0], [2.0])


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "items.json"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_items_are_read_and_the_answer_stands_for_a_missing_paraphrase(
    written: Callable[[str], Path],
) -> None:
    lines = [json.dumps(row) for row in ROWS]
    assert read_items(written(f"{lines[0]}\n\n{lines[1]}")) == ITEMS


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"question": None}, "a text under `question`"),
        ({"answer": "  "}, "a text under `answer`"),
        ({"paraphrased_answer": 7}, "a text under `paraphrased_answer`"),
        ({"perturbed_answer": "Oslo"}, "a list of wrong answers under `perturbed_answer`"),
        ({"perturbed_answer": []}, "a list of wrong answers under `perturbed_answer`"),
        ({"perturbed_answer": ["Oslo", 3]}, "nothing but texts in `perturbed_answer`"),
    ],
)
def test_a_line_that_is_no_item_is_named(
    written: Callable[[str], Path], change: dict[str, Any], what: str
) -> None:
    path = written(f"{json.dumps(ROWS[0])}\n{json.dumps({**ROWS[1], **change})}\n")
    with pytest.raises(DataError) as caught:
        read_items(path)
    assert str(caught.value) == f"{path}:2: expected {what}"


def test_a_file_without_questions_is_named(written: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match=r"items\.json holds no question"):
        read_items(written("\n"))


@pytest.mark.parametrize(
    ("name", "count", "wrong", "paraphrased"),
    [
        ("forget10_perturbed", 400, 5, True),
        ("retain_perturbed", 400, 5, True),
        ("real_authors_perturbed", 100, 3, False),
        ("world_facts_perturbed", 117, 3, False),
    ],
)
def test_the_published_files_are_read(
    shared_data: Path, name: str, count: int, wrong: int, paraphrased: bool
) -> None:
    items = read_items(shared_data / "tofu" / f"{name}.json")
    assert len(items) == count
    assert {len(item.perturbed) for item in items} == {wrong}
    assert {item.paraphrase != item.answer for item in items} == {paraphrased}
