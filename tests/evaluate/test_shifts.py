"""Shifts of several models at the places that all of their tokenizers share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmc_local.errors import UsageError
from cmc_local.evaluate import shifts
from cmc_local.evaluate.similarity import Shifts
from cmc_local.model.steered import SteeredModel
from fakes import AB, A, B, FakeBase, FakeShift, adapter, always, vocabulary


def test_a_place_is_told_by_the_bytes_that_are_left() -> None:
    assert shifts.place_ends(vocabulary(), [AB, A, AB]) == [5, 3, 2]
    assert shifts.place_ends(vocabulary(), []) == []


def test_places_are_those_where_a_token_of_every_model_begins() -> None:
    # "aab" as a, ab and as a, a, b: shared are the beginning and the place after the first letter.
    fine = [(0, 3), (0, 2), (0, 1), (1, 1)]
    assert shifts.shared_places([fine, [(0, 3), (0, 2), (1, 1)]]) == [(0, 3), (0, 2), (1, 1)]
    assert shifts.shared_places([fine, [(1, 3)]]) == []


def test_rows_are_what_the_adapters_add_at_the_places() -> None:
    # The delta says b after a prompt of one token and a newline, then a.
    def rule(seen: tuple[int, ...]) -> tuple[float, ...]:
        return (0, 0, 3, 0, 0) if len(seen) == 2 else (0, 2, 0, 0, 0)

    base = FakeBase(always(0, 0, 0, 0, 0))
    talks = [[{"role": "user", "content": "b"}, {"role": "assistant", "content": "ba"}]]
    with SteeredModel(base, base.sampler) as model:
        model.attach(adapter(FakeShift(rule)), 0.5)
        assert shifts.token_places(model, talks, None) == [(0, 2), (0, 1)]
        found = shifts.shifts_at(model, talks, [(0, 2), (0, 1)], None)
    assert found.rows[:, [A, B]] == pytest.approx(np.array([[0, 1.5], [1.0, 0]]))


def test_a_pairs_rows_are_the_difference_of_logits_at_the_same_tokens() -> None:
    plain, tuned = FakeBase(always(0, 1, 2, 0, 0)), FakeBase(_counting, chat_template=TEMPLATE)
    talks = [[{"role": "user", "content": "b"}, {"role": "assistant", "content": "ba"}]]
    with SteeredModel(plain, plain.sampler) as one, SteeredModel(tuned, tuned.sampler) as other:
        places = shifts.token_places(other, talks, None)
        found = shifts.pair_shifts_at(one, other, talks, places, None)
    # Asked by the tuned model's template: "b", then "ab". Before "b" 2 tokens, before "a" 3.
    assert plain.cache[0] == tuned.cache[0] == [B, AB, B]
    assert found.rows[:, [A, B]] == pytest.approx(np.array([[2 - 1, 0 - 2], [3 - 1, 0 - 2]]))


def _counting(seen: tuple[int, ...]) -> tuple[float, ...]:
    return (0, len(seen), 0, 0, 0)


TEMPLATE = "{{ messages[0]['content'] }}ab"


def test_a_pair_of_different_vocabularies_is_refused() -> None:
    plain, tuned = FakeBase(always(0, 0)), FakeBase(always(0, 0), words=vocabulary(b"x"))
    with (
        SteeredModel(plain, plain.sampler) as one,
        SteeredModel(tuned, tuned.sampler) as other,
        pytest.raises(UsageError, match="must have the same vocabulary"),
    ):
        shifts.pair_shifts_at(one, other, [], [], None)


def test_a_constant_moves_nothing_and_texts_are_counted_over_all_models() -> None:
    first = Shifts(vocabulary(b"x", b"y"), np.array([[7, 7, 10]], np.float32))
    second = Shifts(vocabulary(b"y"), np.array([[0, 4], [0, 2]], np.float32))
    found = {one["token"]: one for one in shifts.moved({"one": first, "two": second})}
    # x: 7 - 8. y: 10 - 8 = 2 at one place, 2 and 1 at two: 5/3.
    assert found["x"] == {"token": "x", "mean_shift": -1.0, "count": 1}
    assert found["y"]["mean_shift"] == pytest.approx(5 / 3, abs=1e-4)
    assert found["y"]["count"] == 3
    assert math.isclose(sum(one["count"] for one in found.values()), 4)
