"""Likeness of shifts, against arithmetic done by hand and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import UsageError
from cmc_local.evaluate import similarity
from cmc_local.evaluate.similarity import (
    Shifts,
    cosine,
    edit_distances,
    shared_tokens,
    similarities,
    sinkhorn,
    top_tokens,
    transport,
)
from cmc_local.text.vocabulary import Role, Vocabulary

SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])


def vocabulary(*texts: bytes) -> Vocabulary:
    """An end token, then the texts."""
    entries = [(text, Role.NORMAL, repr(text)) for text in texts]
    return Vocabulary.assemble([(b"", Role.EOS, "</s>"), *entries], eos_id=0)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_tokens_are_shared_by_their_bytes_and_the_lowest_id_stands_for_twins() -> None:
    one = vocabulary(b"a", b" b", b"\xe2", b"a")
    other = vocabulary(b"\xe2", b"b", b"a")
    ids, other_ids = shared_tokens(one, other)  # "a" and the half character; " b" is not "b"
    assert ids.tolist() == [1, 3]
    assert other_ids.tolist() == [3, 1]


def test_cosine_takes_off_the_mean() -> None:
    # (1, 2, 6) - 3 = (-2, -1, 3); (4, 4, 1) - 3 = (1, 1, -2): -9 / sqrt(14 * 6)
    found = cosine(np.array([1.0, 2.0, 6.0]), np.array([4.0, 4.0, 1.0]))
    assert found == pytest.approx(-9 / math.sqrt(84))


def test_cosine_with_a_shift_that_moves_nothing_is_0() -> None:
    assert cosine(np.array([2.0, 2.0]), np.array([1.0, 3.0])) == 0.0


def test_sinkhorn_of_two_halves() -> None:
    # The plan is [[s, 1/2 - s], [1/2 - s, s]] with (1/2 - s) / s = exp(-1 / regularisation) = 1/3:
    # s = 3/8, and the cost is what lies off the diagonal, 2 * 1/8.
    half = np.array([0.5, 0.5])
    assert sinkhorn(half, half, SWAP, 1 / math.log(3)) == pytest.approx(0.25)


def test_sinkhorn_of_unequal_masses() -> None:
    # p = (3/4, 1/4), q = (1/4, 3/4): the plan is [[x, 3/4 - x], [1/4 - x, x]], and
    # x^2 / ((3/4 - x) (1/4 - x)) = exp(2 / regularisation) = 4 gives 3 x^2 - 4 x + 3/4 = 0.
    x = (4 - math.sqrt(7)) / 6
    found = sinkhorn(np.array([0.75, 0.25]), np.array([0.25, 0.75]), SWAP, 2 / math.log(4))
    assert found == pytest.approx(1 - 2 * x, abs=1e-4)


def test_sinkhorn_at_little_regularisation_is_the_cheapest_plan() -> None:
    # Half of the mass has to cross.
    found = sinkhorn(np.array([0.75, 0.25]), np.array([0.25, 0.75]), SWAP, 0.01)
    assert found == pytest.approx(0.5, abs=1e-4)


def test_sinkhorn_ignores_what_has_no_mass() -> None:
    cost = np.array([[0.0, 1.0, 0.3], [1.0, 0.0, 0.3], [0.7, 0.7, 0.7]])
    found = sinkhorn(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.5, 0.0]), cost, 1 / math.log(3))
    assert found == pytest.approx(0.25)


@given(st.integers(0, 2**31), st.integers(2, 12), st.sampled_from([0.02, 0.05, 0.5]))
def test_sinkhorn_settles_between_the_cheapest_plan_and_the_independent_one(
    seed: int, size: int, regularisation: float
) -> None:
    draw = np.random.default_rng(seed)
    p, q = (draw.dirichlet(np.full(size, 0.3)) + 1e-9 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    places = draw.uniform(size=size)
    cost = np.abs(places[:, None] - places)
    found = sinkhorn(p, q, cost, regularisation)
    # On a line the cheapest plan costs the area between the two distribution functions.
    order = np.argsort(places)
    between = np.abs(np.cumsum(p[order]) - np.cumsum(q[order]))[:-1]
    cheapest = between @ np.diff(places[order])
    assert cheapest - 2e-4 <= found <= p @ cost @ q + 2e-4


def test_sinkhorn_that_does_not_settle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "MAX_ROUNDS", 1)
    cost = np.array([[0.0, 0.5], [0.2, 1.0]])
    with pytest.raises(UsageError, match=r"did not settle in 1 rounds: use .* above 0\.05"):
        sinkhorn(np.array([0.7, 0.3]), np.array([0.1, 0.9]), cost, 0.05)


def slow_distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        slow_distance(one[1:], other) + 1,
        slow_distance(one, other[1:]) + 1,
        slow_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


WORDS = st.lists(st.text("ab é", max_size=4), min_size=1, max_size=5)


@given(WORDS, WORDS)
def test_edit_distances_are_those_of_the_definition(some: list[str], others: list[str]) -> None:
    found = edit_distances([x.encode() for x in some], [x.encode() for x in others])
    expected = [[slow_distance(a, b) / max(len(a), len(b), 1) for b in others] for a in some]
    np.testing.assert_allclose(found, expected)


def test_edit_distances_with_half_a_character_count_bytes() -> None:
    # "é" is two bytes, of which the first is shared: one of two changes.
    assert edit_distances([b"\xc3"], ["é".encode()]).tolist() == [[0.5]]


def test_top_tokens_are_the_softmax_of_the_largest_shifts_with_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarity, "TOP", 2)
    # ln 3 + 5 and 5 beside an end token of 9, which has no text: shares 3/4 and 1/4.
    (top,) = top_tokens(
        Shifts(vocabulary(b"x", b"y", b"z"), rows([9.0, 5.0, 1.0, 5 + math.log(3)]))
    )
    assert top.texts == [b"z", b"x"]
    assert top.masses == pytest.approx([0.75, 0.25])


def test_transport_is_near_for_near_spellings_and_forgets_the_constant() -> None:
    words = vocabulary(b" Paris", b" the")
    pieces = vocabulary(b" Par", b" cat")
    # All mass is on one token of each: 2 of 6 characters lack, or 2 lack and 2 differ.
    (paris,) = top_tokens(Shifts(words, rows([0.0, 30.0, 0.0])))
    (moved,) = top_tokens(Shifts(words, rows([0.0, 130.0, 100.0])))
    (par,) = top_tokens(Shifts(pieces, rows([0.0, 30.0, 0.0])))
    (cat,) = top_tokens(Shifts(pieces, rows([0.0, 0.0, 30.0])))
    assert transport(paris, par) == pytest.approx(2 / 6, abs=1e-3)
    assert transport(moved, par) == pytest.approx(2 / 6, abs=1e-3)
    assert transport(paris, cat) == pytest.approx(4 / 6, abs=1e-3)


def test_similarities_are_means_over_places_in_the_models_order() -> None:
    one = Shifts(vocabulary(b"a", b"b"), rows([7.0, 30.0, 0.0], [7.0, 30.0, 0.0]))
    turned = Shifts(vocabulary(b"b", b"c", b"a"), rows([0.0, 0, -90, 30], [0.0, 30, -90, 0]))
    found = similarities({"one": one, "turned": turned})
    assert found["models"] == ["one", "turned"]
    # Over "a" and "b": the same direction at the first place, the opposite at the second.
    assert found["cosine"] == [[1.0, 0.0], [0.0, 1.0]]
    # All mass on "a" both times at the first place, moved to another letter at the second.
    assert found["sinkhorn"] == [[0.0, 0.5], [0.5, 0.0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Shifts(vocabulary(b"a", b"b"), rows([0, 1, 2], [0, 1, 2])), r"of \[1, 2\] places"),
        (Shifts(vocabulary(b"a", b"b"), rows([1, 2])), r"shape \(1, 2\) do not fit 3 tokens"),
        (Shifts(vocabulary(b"a", b"b"), rows([0, math.nan, 2])), "not finite"),
        (Shifts(vocabulary(b"a", b"c"), rows([0, 1, 2])), "two and one have 1 tokens in common"),
    ],
)
def test_shifts_that_cannot_be_compared_say_why(other: Shifts, message: str) -> None:
    one = Shifts(vocabulary(b"a", b"b"), rows([0, 1, 2]))
    with pytest.raises(UsageError, match=message):
        similarities({"one": one, "two": other})


def test_no_models_are_no_places() -> None:
    with pytest.raises(UsageError, match="at least one"):
        similarities({})
