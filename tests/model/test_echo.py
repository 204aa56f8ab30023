"""A prompt read for its likelihoods: each token's own row, in strides that keep the pace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmc_local.engine.logprobs import LogprobRecorder
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.model import echo as reading
from cmc_local.model.echo import EchoReader
from cmc_local.model.requests import Echo
from cmc_local.steer.steering import ActiveAdapter
from fakes import AB, NEWLINE, A, B, FakeBase, FakeShift, GreedySampler, Rule, adapter, always


def any_rule(seed: int) -> Rule:
    return lambda seen: tuple(hash((seed, i, *seen[-9:])) % 89 / 20 for i in range(5))


def read(
    base: FakeBase,
    tokens: Sequence[int],
    answer: int,
    active: Sequence[ActiveAdapter] = (),
    **how: object,
) -> EchoReader:
    return EchoReader(
        how.pop("engine", None) or Engine(base),  # type: ignore[arg-type]
        how.pop("slot", None) or Slot(0),  # type: ignore[arg-type]
        tokens,
        Echo("", answer, tuple(active)),
        LogprobRecorder(2, plain=True),
    )


def log_softmax(row: Sequence[float]) -> NDArray[np.float64]:
    weights = np.exp(np.array(row, np.float64))
    return np.asarray(np.log(weights / weights.sum()))


@given(
    tokens=st.lists(st.sampled_from([A, B, AB, NEWLINE]), min_size=1, max_size=24),
    data=st.data(),
    truncates=st.booleans(),
)
def test_each_tokens_likelihood_is_that_of_its_own_row(
    tokens: list[int], data: st.DataObject, truncates: bool
) -> None:
    answer = data.draw(st.integers(0, len(tokens)))
    rule, base = any_rule(1), FakeBase(any_rule(1), truncates=truncates)
    # The delta's rule knows how much it was fed alone, so its row is known without aligning.
    steers = adapter(FakeShift(always(0, 0, 1.5, 0, 0)))
    texts = base.vocabulary.tokens
    given_bytes = b"".join(texts[token] for token in tokens[: max(answer, 1)])
    active = steers.active(0.5, steers.verbatim("\n"), given_bytes)
    slot = Slot(0)
    engine = Engine(base)
    engine.begin(slot, [B, B], GreedySampler(base))  # what a slot held before does not matter
    engine.step([slot.run])  # type: ignore[list-item]
    one = read(base, tokens, answer, [active], engine=engine, slot=slot)
    while one.step():
        pass
    assert [detail.token for detail in one.details] == tokens
    assert one.details[0].logprob is None
    for at, detail in enumerate(one.details[1:], start=1):
        row = np.array(rule(tuple(tokens[:at])))
        plain = log_softmax(row)[tokens[at]]
        if at >= answer:
            row[B] += 0.5 * 1.5
        assert detail.logprob is not None and detail.plain_logprob is not None
        assert math.isclose(detail.logprob, log_softmax(row)[tokens[at]], abs_tol=1e-5)
        assert math.isclose(detail.plain_logprob, plain, abs_tol=1e-5)
        assert detail.top[0][0] == int(row.argmax())


def test_a_slow_model_is_read_in_smaller_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=512)
    decode = base.decode_spans

    def slow(spans):  # type: ignore[no-untyped-def]
        clock[0] += 2**-7 * sum(len(span.tokens) for span in spans)
        decode(spans)

    monkeypatch.setattr(base, "decode_spans", slow)
    monkeypatch.setattr(reading, "perf_counter", lambda: clock[0])
    engine = Engine(base)
    engine.step_seconds = 0.25
    one = read(base, [B] * 200, 1, engine=engine)
    while one.step():
        pass
    # At first nobody knows: 64 rows. Then 0.25 s of 1/128 s each: 32.
    assert [len(tokens) for tokens in base.decoded] == [64, 32, 32, 32, 32, 7]
