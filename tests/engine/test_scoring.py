"""Teacher-forced scores: equal to stepping, in bounded pieces, the caches kept right.

The five tokens of `fakes`: 0 `</s>`, 1 "a", 2 "b", 3 "ab", 4 newline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmc_local.engine import scoring
from cmc_local.engine.scoring import Passage, Score
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, Rule, adapter, always
from tiny_adapters import tiny_adapter

GREEDY = Sampling(temperature=0, max_tokens=6)
SAYS_A = always(0, 1, 0.5, 0, 0)
WANTS_B = always(0, 0, 1, 0, 0)
ANSWER = "She was born in Harborville, the daughter of a lighthouse keeper; café, Zürich.\n"
TOKENS = st.sampled_from([A, B, AB, NEWLINE, END])


class Forced:
    """Takes the given tokens and notes the rows that they came from."""

    def __init__(self, passage: Passage) -> None:
        self._base, self._tokens = passage.engine.base, passage.tokens
        self.rows: list[NDArray[np.float32]] = []

    def sample(self, i: int = -1) -> int:
        self.rows.append(self._base.logits(i).copy())
        return self._tokens[len(self.rows) - 1]


def stepped(passage: Passage) -> NDArray[np.float32]:
    """The slow reference: the shifted logits before each token, each in a step of its own."""
    forced, active = Forced(passage), passage.active
    run = passage.engine.begin(passage.slot, passage.prompt, forced, active)
    while len(forced.rows) < len(passage.tokens):
        passage.engine.step([run])
    return np.array(forced.rows)


def logprobs(rows: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """log softmax of each row at its token."""
    exact = rows.astype(np.float64)
    total = np.log(np.exp(exact).sum(axis=1))
    found: NDArray[np.float64] = exact[np.arange(len(tokens)), list(tokens)] - total
    return found


def any_rule(seed: int) -> Rule:
    """Logits that depend on every token so far."""
    return lambda seen: tuple(hash((seed, i, *seen)) % 89 / 20 for i in range(5))


def steered(base: FakeBase, *shifts: FakeShift, batch: int = 512) -> SteeredModel:
    model = SteeredModel(base, base.sampler, limits=Limits(batch=batch))
    for shift in shifts:
        model.attach(adapter(shift, mid_token="join"))
    return model


# --- equal to the slow reference -------------------------------------------------------------


@given(
    texts=st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=1, max_size=3),
    batch=st.integers(1, 9),
    context=st.sampled_from([12, 64]),
    truncates=st.booleans(),
)
def test_scores_equal_stepping(
    texts: list[list[int]], batch: int, context: int, truncates: bool
) -> None:
    def made(batch: int) -> SteeredModel:
        base = FakeBase(any_rule(1), n_ctx=256, truncates=truncates)
        shifts = (FakeShift(any_rule(2), context=context), FakeShift(any_rule(3)))
        return steered(base, *shifts, batch=batch)

    fast = made(batch)
    for text in texts:  # one after the other: what the caches hold by then differs
        alphas = {"tiny": 1.0, "tiny-2": -0.5}
        with made(512).passage("ab", text, alphas=alphas) as passage:
            rows = stepped(passage)
        found = fast.score("ab", text, alphas=alphas)
        np.testing.assert_allclose(found.logprobs, logprobs(rows, text), atol=1e-5)
        assert found.greedy.tolist() == (rows[np.arange(len(text)), text] == rows.max(1)).tolist()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("adapters")
    return [
        tiny_adapter(place / "same", context=40),
        tiny_adapter(place / "other", "byte-level", 400, seed=6),
    ]


@pytest.fixture(params=["tiny_gguf", "other_gguf"])
def model(request: pytest.FixtureRequest, adapters: list[Path]) -> Iterator[SteeredModel]:
    """A real model, steered from its own vocabulary and from the other one."""
    gguf = request.getfixturevalue(request.param)
    limits = Limits(context=256, batch=24)
    parts = {"threads": 1, "gpu_layers": 0, "delta_device": "cpu", "speculate": 0}
    with SteeredModel.load(gguf, adapters, limits=limits, **parts) as loaded:  # type: ignore[arg-type]
        yield loaded


@pytest.mark.parametrize("alphas", [None, 0.0, {"same": 0.0}, {"same": 0.4, "other": -0.2}])
def test_on_real_models_scores_equal_stepping(
    model: SteeredModel, alphas: Mapping[str, float] | None
) -> None:
    with model.passage("Where was Helen born?", ANSWER, alphas=alphas) as passage:
        assert len(passage.tokens) > 24  # several decodes
        assert len(passage.prompt) + len(passage.tokens) > 40  # a delta's context is too short
        rows = stepped(passage)
        score = passage.score()
    # Kernels of other batch sizes and an F16 cache round differently: seen 6e-6, spread over 14.
    print(
        "SEEN",
        np.abs(score.logprobs - logprobs(rows, score.tokens)).max(),
        np.ptp(rows, axis=1).max(),
        len(score.tokens),
    )
    np.testing.assert_allclose(score.logprobs, logprobs(rows, score.tokens), atol=1e-2)


def test_on_real_models_rows_of_shifts_are_what_is_added(model: SteeredModel) -> None:
    question = "What did she write?"
    with model.passage(question, ANSWER, alphas=0.0) as passage:
        plain = np.array([row.copy() for row, shifts in passage.positions()])
    shifts = model.shift_rows(question, ANSWER)
    score = model.score(question, ANSWER)
    assert shifts.shape == (len(score.tokens), len(model.base.vocabulary))
    np.testing.assert_allclose(score.logprobs, logprobs(plain + shifts, score.tokens), atol=1e-4)
    assert not model.shift_rows(question, ANSWER, alphas=0.0).any()


# --- strengths -------------------------------------------------------------------------------


def test_a_row_of_shifts_by_hand() -> None:
    # The delta says 0 0 1 0 0 everywhere; strengths 2 and 1 of two of them make 0 0 3 0 0.
    model = SteeredModel(base := FakeBase(SAYS_A), base.sampler)
    model.attach(adapter(FakeShift(WANTS_B)), 2.0)
    model.attach(adapter(FakeShift(WANTS_B)), 1.0)
    assert model.shift_rows("a", [A, B]).tolist() == [[0, 0, 3, 0, 0]] * 2


def test_strengths_of_one_adapter_are_tried_on_one_run_of_the_models() -> None:
    base, first, second = FakeBase(any_rule(1)), FakeShift(any_rule(2)), FakeShift(any_rule(3))
    model = steered(base, first, second)
    model.set_alpha("tiny-2", 0.0)  # off, and tried all the same
    alphas = (0.0, 0.5, 1.5, -1.0)
    found = model.score_alphas("ab", "aabba", "tiny-2", alphas)
    assert base.batches == [(2 + 3,)]  # "ab", newline, then "a", "ab", "b" but not the last "a"
    for alpha, score in zip(alphas, found, strict=True):
        alone = model.score("ab", "aabba", alphas={"tiny-2": alpha})
        np.testing.assert_allclose(score.logprobs, alone.logprobs, rtol=1e-12)
        assert (score.tokens, score.greedy.tolist()) == (alone.tokens, alone.greedy.tolist())


# --- what is decoded -------------------------------------------------------------------------


def test_the_base_takes_chunks_and_leaves_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Six tokens of prompt, three a decode; of the text at most two rows of five logits.
    monkeypatch.setattr(scoring, "LOGITS", 2 * 5)
    base, shift = FakeBase(any_rule(1)), FakeShift(any_rule(2))
    found = steered(base, shift, batch=3).score("aaaaa", [A] * 6)
    # The prompt's last token has the first row: a a a, a a NEWLINE, a a, a a, a.
    assert [len(tokens) for tokens in base.decoded] == [3, 3, 2, 2, 1]
    monkeypatch.undo()
    whole = steered(FakeBase(any_rule(1)), FakeShift(any_rule(2))).score("aaaaa", [A] * 6)
    np.testing.assert_array_equal(found.logprobs, whole.logprobs)


def test_a_delta_runs_once_for_many_tokens() -> None:
    shift = FakeShift(WANTS_B)
    steered(FakeBase(SAYS_A), shift).score("b", [A] * 9)
    assert shift.fed == [(B, NEWLINE), (A,) * 8]  # the last token is followed by nothing


def test_a_token_that_changes_the_deltas_last_one_begins_a_run() -> None:
    shift = FakeShift(WANTS_B)
    steered(FakeBase(SAYS_A), shift).score("b", [A, A, B, B, A])
    assert shift.fed == [(B, NEWLINE), (A, A), (AB, B)]


def test_many_scores_come_in_order_and_prompts_are_decoded_once() -> None:
    base = FakeBase(SAYS_A)
    model = steered(base, FakeShift(WANTS_B))
    asked: list[tuple[str, str]] = [("aaaab", "b"), ("aaaab", "aa"), ("aaaaa", "b")]
    scores = model.score_many(iter(asked))
    assert base.decoded == []
    assert [score.tokens for score in scores] == [(B,), (A, A), (B,)]
    # "aaaab" is a a a ab NEWLINE; the last token of a prompt is decoded again, for its logits.
    assert base.decoded == [(A, A, A, AB, NEWLINE), (NEWLINE, A), (A, A, NEWLINE)]


def test_scores_and_replies_take_turns() -> None:
    model, fresh = (steered(FakeBase(any_rule(1)), FakeShift(any_rule(2))) for _ in range(2))
    before = model.score("ab", "abba")
    said = model.generate("ab", GREEDY)
    assert said.tokens == fresh.generate("ab", GREEDY).tokens
    assert model.score("ab", said.tokens).greedy.all()
    np.testing.assert_array_equal(model.score("ab", "abba").logprobs, before.logprobs)


# --- what goes wrong -------------------------------------------------------------------------


def test_too_long_a_text_is_refused_before_anything_is_decoded() -> None:
    base = FakeBase(SAYS_A, n_ctx=8)
    model = steered(base)
    with pytest.raises(PromptTooLong, match="context of 8 tokens"):
        model.score("b", [A] * 8)
    assert base.decoded == []
    assert len(model.score("b", [A] * 7).tokens) == 7  # 2 + 6 are decoded


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_that_does_not_exist_is_refused(token: int) -> None:
    with pytest.raises(UsageError, match=rf"token {token} is not .* vocabulary of 5"):
        steered(FakeBase(SAYS_A)).score("b", [A, token])


def expected() -> Score:
    return steered(FakeBase(any_rule(1)), FakeShift(any_rule(2))).score("b", "aabb")


def test_after_an_error_of_the_delta_both_begin_anew() -> None:
    base, shift = FakeBase(any_rule(1)), FakeShift(any_rule(2))
    model = steered(base, shift)
    model.score("b", "aab")
    shift.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        model.score("b", "bbb")
    shift.error = None
    base.decoded.clear()
    np.testing.assert_array_equal(model.score("b", "aabb").logprobs, expected().logprobs)
    assert base.decoded == [(B, NEWLINE, A, AB)]  # nothing of the caches was trusted


def test_after_an_error_of_the_base_both_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    base = FakeBase(any_rule(1))
    model = steered(base, FakeShift(any_rule(2)))
    with monkeypatch.context() as broken:

        def fails(spans: object) -> None:
            base.cache[0] = [A, A]  # half a decode
            raise RuntimeError("broken")

        broken.setattr(base, "decode_spans", fails)
        with pytest.raises(RuntimeError, match="broken"):
            model.score("b", "bbb")
    np.testing.assert_array_equal(model.score("b", "aabb").logprobs, expected().logprobs)


def test_a_look_that_ends_early_leaves_the_caches_usable() -> None:
    model = steered(FakeBase(any_rule(1)), FakeShift(any_rule(2)), batch=2)
    with model.passage("b", "abab") as passage:
        next(passage.positions())
    np.testing.assert_array_equal(model.score("b", "aabb").logprobs, expected().logprobs)


def test_a_reply_under_way_is_not_disturbed() -> None:
    model = steered(FakeBase(SAYS_A))
    stream = model.stream("b", GREEDY)
    next(stream)
    with pytest.raises(UsageError, match="under way"):
        model.score("b", "a")
    assert len(list(stream)) == 6


def test_a_passage_can_be_looked_at_with_other_strengths() -> None:
    model = steered(FakeBase(any_rule(1)), FakeShift(any_rule(2)))
    with model.passage("ab", "aabb") as passage:
        (one,) = passage.active
        half = replace(passage, active=[replace(one, alpha=0.5)]).score()
    np.testing.assert_array_equal(half.logprobs, model.score("ab", "aabb", alphas=0.5).logprobs)
