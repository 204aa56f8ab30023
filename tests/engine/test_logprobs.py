"""Log-probabilities of tokens, hand-checked and against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmc_local.engine.logprobs import LogprobRecorder, detail, log_softmax, ranked
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from fakes import END, FakeBase, vocabulary

# Weights 1, 2 and 5 of 8: probabilities 0.125, 0.25 and 0.625.
ROW = np.log(np.array([1, 2, 5], np.float32))


def test_a_tokens_likelihood_and_what_else_could_have_come() -> None:
    found = detail(ROW, 1, 2)
    assert found.token == 1
    assert found.logprob is not None and math.isclose(found.logprob, math.log(0.25), rel_tol=1e-6)
    assert [token for token, _ in found.top] == [2, 1]
    assert math.isclose(found.top[0][1], math.log(0.625), rel_tol=1e-6)
    assert found.plain_logprob is None and found.plain_top == ()


def test_a_recorder_tells_before_from_after() -> None:
    recorder, row = LogprobRecorder(1, plain=True), ROW.copy()
    recorder.before(row)
    row[0] += np.float32(math.log(9))  # weights 9, 2 and 5 of 16
    recorder.after(row, 0)
    (found,) = recorder.collected()
    assert found.logprob is not None and found.plain_logprob is not None
    assert math.isclose(math.exp(found.logprob), 9 / 16, rel_tol=1e-6)
    assert math.isclose(math.exp(found.plain_logprob), 1 / 8, rel_tol=1e-6)
    assert (found.top[0][0], found.plain_top[0][0]) == (0, 2)
    assert recorder.collected() == []


def test_a_recorder_without_plain_keeps_no_row() -> None:
    recorder = LogprobRecorder(0)
    recorder.before(ROW)
    recorder.after(ROW, 2)
    assert recorder.collected()[0].plain_logprob is None


@pytest.mark.parametrize("drafts", [0, 7], ids=["one by one", "with drafts"])
def test_details_stay_with_their_tokens_whatever_holds_the_text_back(drafts: int) -> None:
    """A character in two tokens, a stop text in two, a character that never becomes whole."""
    words = vocabulary(b"a", b"\xc3", b"\xa9", b"#")
    a, first, second, sharp = range(1, 5)
    prompt = [a, first, second, a, sharp, a, first]
    scripts = {
        (first, second, a, sharp, a, first, second, a, sharp, sharp): ("éa#aéa", "stop"),
        (first, second, a, sharp, a, first, END): ("éa#a", "stop"),
        (first, second, a, sharp, a, first, second, a, sharp): ("éa#aéa#", "length"),
    }
    for script, (said, reason) in scripts.items():

        def rule(seen: tuple[int, ...], script: tuple[int, ...] = script) -> list[float]:
            at = min(len(seen) - len(prompt), len(script) - 1)
            return [3.0 if token == script[at] else token / 10 for token in range(5)]

        base = FakeBase(rule, words=words)
        model = SteeredModel(base, base.sampler, drafts=drafts)
        most = len(script) if reason == "length" else 40
        sampling = Sampling(temperature=0, max_tokens=most, stop=("##",))
        batch = model.batch()
        batch.submit(model.request(Ask(prompt=prompt, sampling=sampling, top_logprobs=1)))
        pieces: list[Piece] = []
        while batch.active:
            pieces += [piece for _, piece in batch.step() if isinstance(piece, Piece)]
        model.close()
        assert ("".join(piece.text for piece in pieces), pieces[-1].finish_reason) == (said, reason)
        for piece in pieces:
            assert tuple(one.token for one in piece.details) == piece.tokens
        details = [one for piece in pieces for one in piece.details]
        end = [] if pieces[-1].end is None else [pieces[-1].end]
        assert tuple(one.token for one in (*details, *end)) == script
        assert (end != []) == (END in script)
        assert all(one.top[0][0] == one.token for one in details)
        guessed = pieces[-1].timings.guessed_tokens  # type: ignore[union-attr]
        assert (guessed > 0) == (drafts > 0)


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
