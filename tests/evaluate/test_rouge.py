"""ROUGE-L on sentences short enough to count, and against a plain search for common words."""

from __future__ import annotations

import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import MissingExtra
from cmc_local.evaluate.rouge import rouge_l_f1, rouge_l_recall


@pytest.mark.parametrize(
    ("reference", "reply", "recall", "f1"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0),
        # "cat sat" is common: 2 of 3 words of the reference, 2 of 6 of the reply.
        ("the cat sat", "a cat sat on the mat", 2 / 3, 2 / (3 + 6) * 2),
        # Order counts: of "b a" against "a b" one word is common.
        ("a b", "b a", 0.5, 0.5),
        ("The CAT, sat!", "the cat sat", 1.0, 1.0),
        # The stemmer: "writing" and "writes" are both "write".
        ("she was writing", "she writes", 2 / 3, 2 / (3 + 2) * 2),
        ("one", "", 0.0, 0.0),
        ("", "one", 0.0, 0.0),
    ],
)
def test_rouge_l_by_hand(reference: str, reply: str, recall: float, f1: float) -> None:
    assert rouge_l_recall(reference, reply) == pytest.approx(recall)
    assert rouge_l_f1(reference, reply) == pytest.approx(f1)


def longest_common(one: list[str], other: list[str]) -> int:
    """Tries every choice of words, longest first."""

    def choices(words: list[str], size: int) -> set[tuple[str, ...]]:
        return set(combinations(words, size))

    sizes = range(min(len(one), len(other)), 0, -1)
    return next((n for n in sizes if choices(one, n) & choices(other, n)), 0)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6)


@given(WORDS, WORDS)
def test_recall_and_f1_follow_from_the_longest_common_subsequence(
    reference: list[str], reply: list[str]
) -> None:
    common = longest_common(reference, reply)
    pair = " ".join(reference), " ".join(reply)
    assert rouge_l_recall(*pair) == pytest.approx(common / len(reference))
    assert rouge_l_f1(*pair) == pytest.approx(2 * common / (len(reference) + len(reply)))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(MissingExtra, match=r'rouge_score.*pip install "cmc-local\[eval\]"'):
        rouge_l_recall("a", "a")
