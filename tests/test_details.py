"""Log-probabilities of tokens, hand-checked and against a slow reference."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmc_local.details import Watch, detail, log_softmax, ranked

# Weights 1, 2 and 5 of 8: probabilities 0.125, 0.25 and 0.625.
ROW = np.log(np.array([1, 2, 5], np.float32))


def test_a_tokens_likelihood_and_what_else_could_have_come() -> None:
    found = detail(ROW, 1, 2)
    assert found.token == 1
    assert found.logprob is not None and math.isclose(found.logprob, math.log(0.25), rel_tol=1e-6)
    assert [token for token, _ in found.top] == [2, 1]
    assert math.isclose(found.top[0][1], math.log(0.625), rel_tol=1e-6)
    assert found.plain_logprob is None and found.plain_top == ()


def test_a_watch_tells_before_from_after() -> None:
    watch, row = Watch(1, plain=True), ROW.copy()
    watch.before(row)
    row[0] += np.float32(math.log(9))  # weights 9, 2 and 5 of 16
    watch.after(row, 0)
    (found,) = watch.take()
    assert found.logprob is not None and found.plain_logprob is not None
    assert math.isclose(math.exp(found.logprob), 9 / 16, rel_tol=1e-6)
    assert math.isclose(math.exp(found.plain_logprob), 1 / 8, rel_tol=1e-6)
    assert (found.top[0][0], found.plain_top[0][0]) == (0, 2)
    assert watch.take() == []


def test_a_watch_without_plain_keeps_no_row() -> None:
    watch = Watch(0)
    watch.before(ROW)
    watch.after(ROW, 2)
    assert watch.take()[0].plain_logprob is None


@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(-8, 8).map(float)),
    st.integers(0, 40),
)
def test_the_ranking_is_that_of_a_sort(row: np.ndarray, top: int) -> None:
    logprobs = log_softmax(row)
    by_hand = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top]
    found = ranked(logprobs, top)
    # Equal logits may be cut anywhere; what is named is in order and as likely as by hand.
    assert [row[token] for token, _ in found] == [row[i] for i in by_hand]
    assert [token for token, _ in found] == sorted(
        (token for token, _ in found), key=lambda i: (-row[i], i)
    )
    total = sum(math.exp(float(one) - float(row.max())) for one in row)
    for token, logprob in found:
        by_hand_logprob = float(row[token]) - float(row.max()) - math.log(total)
        assert math.isclose(logprob, by_hand_logprob, abs_tol=1e-9)
