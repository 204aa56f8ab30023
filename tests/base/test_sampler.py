"""Native sampler chains on logits that the test writes itself."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.errors import UsageError
from cmc_local.settings import Sampling

A, B, C = 300, 301, 302


@pytest.fixture
def base(tiny_gguf: Path) -> Iterator[BaseModel]:
    with BaseModel(tiny_gguf, kv_type="f32", threads=1) as model:
        model.decode([1, A], start=0)
        yield model


def write(base: BaseModel, **logits: float) -> None:
    """Put logits in the place of the model's: A, B and C as given, all others -50."""
    view = base.logits()
    view[:] = -50.0
    for name, value in logits.items():
        view[{"a": A, "b": B, "c": C}[name]] = value


def draw(base: BaseModel, sampling: Sampling, times: int, **logits: float) -> list[int]:
    sampler = NativeSampler(base, sampling)
    drawn = []
    for _ in range(times):
        write(base, **logits)
        drawn.append(sampler.sample())
    sampler.close()
    return drawn


PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


def test_temperature_zero_takes_the_most_likely_token(base: BaseModel) -> None:
    assert draw(base, Sampling(temperature=0.0), 3, a=1.0, b=2.0, c=1.5) == [B, B, B]


def test_a_shift_written_into_the_logits_decides(base: BaseModel) -> None:
    sampler = NativeSampler(base, Sampling(temperature=0.0))
    plain = int(base.logits().argmax())
    base.logits()[C] += 1e4
    assert (plain != C, sampler.sample()) == (True, C)


def test_a_seed_repeats_and_another_differs(base: BaseModel) -> None:
    logits = {"a": 0.0, "b": 0.0, "c": 0.0}
    first, again, other = (
        draw(base, Sampling(**PLAIN, seed=seed), 40, **logits) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_without_a_seed_each_sampler_draws_its_own_and_tells_it(base: BaseModel) -> None:
    told = NativeSampler(base, Sampling(**PLAIN))
    assert told.seed != NativeSampler(base, Sampling(**PLAIN)).seed
    again = draw(base, Sampling(**PLAIN, seed=told.seed), 20, a=0.0, b=0.0)
    mine = []
    for _ in range(20):
        write(base, a=0.0, b=0.0)
        mine.append(told.sample())
    assert mine == again


def test_draws_follow_the_softmax(base: BaseModel) -> None:
    # softmax(log 3, log 1) = 0.75, 0.25; 2,000 draws have a standard deviation of 0.01
    counts = Counter(draw(base, Sampling(**PLAIN, seed=1), 2000, a=np.log(3.0), b=0.0))
    assert counts.keys() == {A, B}
    assert abs(counts[A] / 2000 - 0.75) < 0.05


@pytest.mark.parametrize(
    ("kept", "allowed"),
    [
        ({"top_k": 2}, {A, B}),
        ({"top_p": 0.6}, {A}),  # probabilities 0.665, 0.245, 0.090
        ({"top_p": 0.8}, {A, B}),
        ({"min_p": 0.2}, {A, B}),  # relative to the likeliest: 1, 0.37, 0.14
    ],
)
def test_what_is_cut_off_is_never_drawn(
    base: BaseModel, kept: dict[str, float], allowed: set[int]
) -> None:
    sampling = Sampling(**{**PLAIN, "seed": 2, **kept})  # type: ignore[arg-type]
    assert set(draw(base, sampling, 300, a=2.0, b=1.0, c=0.0)) == allowed


def test_penalties_move_on_to_tokens_not_yet_seen(base: BaseModel) -> None:
    # presence: A 2.0, then 2.0 - 1.5 = 0.5 < B 1.0, then both are penalised: A 0.5 > B -0.5
    drawn = draw(base, Sampling(temperature=0.0, presence_penalty=1.5), 3, a=2.0, b=1.0)
    assert drawn == [A, B, A]
    endless = Sampling(temperature=0.0, repeat_penalty=4.0, penalty_last_n=-1)
    assert draw(base, endless, 3, a=2.0, b=1.0, c=0.9) == [A, B, C]


def reply(base: BaseModel, sampling: Sampling, most: int = 60) -> str:
    base.clear(0)
    tokens = [1, A]
    sampler = NativeSampler(base, sampling)
    said: list[int] = []
    while len(said) < most:
        base.decode(tokens, start=base.length())
        tokens = [sampler.sample()]
        if tokens == [2]:
            break
        said += tokens
    return b"".join(base.vocabulary.tokens[token] for token in said).decode()


@pytest.mark.parametrize("seed", range(4))
def test_a_grammar_is_kept_to(base: BaseModel, seed: int) -> None:
    assert reply(base, Sampling(seed=seed, grammar='root ::= "yes" | "no"')) in ("yes", "no")


def test_a_grammar_holds_where_a_shift_forbids_it(base: BaseModel) -> None:
    sampler = NativeSampler(base, Sampling(temperature=0.0, grammar='root ::= "!" '))
    write(base, a=9.0)
    assert base.vocabulary.tokens[sampler.sample()] == b"!"


def test_a_json_schema_gives_json(base: BaseModel) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
    }
    said = json.loads(reply(base, Sampling(seed=1, json_schema=json.dumps(schema))))
    assert list(said) == ["age"]
    assert isinstance(said["age"], int)


def test_tokens_that_a_grammar_forbids_altogether_do_not_end_the_process(base: BaseModel) -> None:
    sampler = NativeSampler(base, Sampling(temperature=0.0, grammar='root ::= "!" | "a"'))
    base.logits()[:] = -np.inf
    with pytest.raises(UsageError, match="allows none"):
        sampler.sample()


@pytest.mark.parametrize("form", ["[^b]+", "[a]"])  # most tokens may come, or few
def test_a_form_leaves_the_row_as_it_was(base: BaseModel, form: str) -> None:
    texts = base.vocabulary.tokens
    a, b = (max(i for i, text in enumerate(texts) if text == one) for one in (b"a", b"b"))
    sampler = NativeSampler(base, Sampling(temperature=0.0, regex=form))
    base.logits()[:] = -50.0
    base.logits()[[a, b]] = 8.0, 9.0
    before = base.logits().copy()
    assert sampler.sample() == a
    np.testing.assert_array_equal(base.logits(), before)


def test_a_row_that_is_forbidden_altogether_is_refused_where_most_may_come(
    base: BaseModel,
) -> None:
    sampler = NativeSampler(base, Sampling(temperature=0.0, regex="[^b]+"))
    base.logits()[:] = -np.inf
    with pytest.raises(UsageError, match="allows none"):
        sampler.sample()


def test_closing_twice_is_fine(base: BaseModel) -> None:
    sampler = NativeSampler(base, Sampling(grammar='root ::= "!"'))
    sampler.close()
    sampler.close()
    with pytest.raises(UsageError, match="closed"):
        sampler.sample()


def test_a_string_of_a_schema_holds_no_line_break(base: BaseModel) -> None:
    newline = base.vocabulary.tokens.index(b"\n")
    quote = max(i for i, text in enumerate(base.vocabulary.tokens) if text == b'"')  # no byte token
    sampler = NativeSampler(base, Sampling(temperature=0.0, json_schema='{"type": "string"}'))
    said = []
    for wanted in (quote, newline):
        base.logits()[:] = -50.0
        base.logits()[quote] = 5.0
        base.logits()[wanted] = 9.0
        said.append(sampler.sample())
    assert said == [quote, quote]  # the string opens, and rather ends than breaks


def test_a_bias_is_added_and_minus_infinity_forbids(base: BaseModel) -> None:
    lifted = Sampling(temperature=0.0, logit_bias=((C, 0.6),))
    assert draw(base, lifted, 1, a=1.0, b=2.0, c=1.5) == [C]  # 1.5 + 0.6 > 2
    assert draw(base, Sampling(temperature=0.0, logit_bias=((C, 0.4),)), 1, b=2.0, c=1.5) == [B]
    without = Sampling(**PLAIN, seed=1, logit_bias=((B, -np.inf),))
    assert set(draw(base, without, 20, a=1.0, b=9.0, c=1.0)) <= {A, C}


def test_a_bias_on_a_token_that_is_not_there_is_refused(base: BaseModel) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        NativeSampler(base, Sampling(logit_bias=((base.n_vocab, 1.0),)))


def test_a_bias_against_all_that_a_grammar_allows_is_refused(base: BaseModel) -> None:
    every = tuple((token, -np.inf) for token in range(base.n_vocab))
    sampler = NativeSampler(base, Sampling(grammar='root ::= "a"', logit_bias=every))
    with pytest.raises(UsageError, match="allows none"):
        sampler.sample()


def test_closing_from_several_threads_at_once_frees_a_sampler_once(base: BaseModel) -> None:
    # A second free of the same chain or grammar would end the process.
    samplers = [NativeSampler(base, Sampling(grammar='root ::= "a"')) for _ in range(40)]
    barrier = threading.Barrier(4)

    def close() -> None:
        barrier.wait(10)
        for sampler in samplers:
            sampler.close()

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for sampler in samplers:
        with pytest.raises(UsageError, match="has been closed"):
            sampler.sample()
