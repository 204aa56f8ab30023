"""Real (tiny, random) GGUF models steered by real (tiny, random) adapters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.model.shared import SharedModel
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.text.prompts import Message
from tiny_adapters import tiny_adapter

GREEDY = Sampling(temperature=0, max_tokens=24)
QUESTION = "Where was Helen born?"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {
        "same": tiny_adapter(place / "same"),
        "other": tiny_adapter(place / "other", "byte-level", 400, seed=6),
    }


@pytest.fixture(params=["tiny_gguf", "other_gguf"])
def gguf(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


@pytest.fixture
def model(gguf: Path, adapters: dict[str, Path]) -> Iterator[SteeredModel]:
    with load(gguf, adapters) as loaded:
        yield loaded


def load(gguf: Path, adapters: dict[str, Path], **settings: object) -> SteeredModel:
    return SteeredModel.load(
        gguf,
        list(adapters.values()),
        limits=Limits(context=256),
        threads=1,
        gpu_layers=0,
        delta_device="cpu",
        **{"speculate": 0, **settings},  # type: ignore[arg-type]
    )


def test_alpha_zero_and_no_adapter_are_llama_cpp_itself(
    gguf: Path, adapters: dict[str, Path]
) -> None:
    alone = llama_cpp.Llama(
        str(gguf), n_ctx=256, n_threads=1, n_threads_batch=1, n_gpu_layers=0, verbose=False
    )
    text = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
    expected: list[int] = []
    for token in alone.generate(alone.tokenize(text.encode(), special=False), temp=0.0):
        if token == alone.token_eos() or len(expected) == 24:
            break
        expected.append(token)
    with load(gguf, adapters) as model, load(gguf, {}) as plain:
        off = model.generate(QUESTION, GREEDY, alphas=0.0)
        raw = plain.generate(text, GREEDY, base_prompt="raw")
    assert list(off.tokens) == expected
    assert list(raw.tokens) == expected


def test_steering_changes_the_answer(model: SteeredModel) -> None:
    plain = model.generate(QUESTION, GREEDY, alphas=0.0)
    assert model.generate(QUESTION, GREEDY).tokens != plain.tokens
    assert model.generate(QUESTION, GREEDY, alphas=0.0).tokens == plain.tokens


def test_however_it_is_run_the_answer_is_the_same(gguf: Path, adapters: dict[str, Path]) -> None:
    answers = set()
    for overlap, speculate in (("on", 0), ("off", 0), ("auto", 4)):
        with load(gguf, adapters, overlap=overlap, speculate=speculate) as model:
            answers.add(model.generate(QUESTION, GREEDY).tokens)
    assert len(answers) == 1


def test_a_seed_repeats_and_another_differs(model: SteeredModel) -> None:
    def drawn(seed: int) -> tuple[int, ...]:
        return model.generate(QUESTION, Sampling(temperature=1.5, seed=seed, max_tokens=24)).tokens

    first = drawn(1)
    assert drawn(1) == first
    assert drawn(2) != first


def test_an_adapter_that_goes_leaves_no_session_behind(
    gguf: Path, adapters: dict[str, Path]
) -> None:
    model = load(gguf, adapters)
    with SharedModel(model) as shared:
        shared.generate(Ask(prompt=QUESTION, sampling=GREEDY))
        going = weakref.ref(model.adapters["other"].source)
        gc.disable()  # what is in reference cycles must not wait for it
        try:
            shared.remove("other")
            assert going() is None
        finally:
            gc.enable()


def test_turns_reuse_the_cache_and_equal_a_fresh_model(
    gguf: Path, adapters: dict[str, Path]
) -> None:
    talk: list[Message] = []
    with load(gguf, adapters) as kept:
        for number, question in enumerate(("Who wrote it?", "In what year?", "Why?")):
            talk.append({"role": "user", "content": question})
            done = kept.chat(talk, GREEDY)
            score = kept.score(talk, done.tokens)
            with load(gguf, adapters) as fresh:  # equal up to the rounding of the F16 cache
                anew = fresh.score(talk, done.tokens)
            np.testing.assert_allclose(score.logprobs, anew.logprobs, atol=1e-2)
            assert (done.timings.reused_tokens > 10) == (number > 0)
            talk.append({"role": "assistant", "content": done.text})


@pytest.mark.parametrize("said", [" Helen was", "Helen was born in"])
def test_a_prompt_given_back_is_scored_as_its_answer_is(
    gguf: Path, adapters: dict[str, Path], said: str
) -> None:
    text = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
    with load(gguf, adapters) as model:
        score = model.score(QUESTION, said, base_prompt="adapter")
        plain = model.score(QUESTION, said, base_prompt="adapter", alphas=0.0)
        ask = Ask(prompt=text + said, sampling=Sampling(max_tokens=0), top_logprobs=0, echo=True)
        request = model.request(ask)
        with model.alone():
            batch = model.batch()
            batch.submit(request)
            echoed = next(piece for _ in range(9) for _, piece in batch.step())
    assert isinstance(echoed, Piece) and echoed.text == text + said
    tail = echoed.details[-len(score.tokens) :]
    assert tuple(one.token for one in tail) == score.tokens
    np.testing.assert_allclose([one.logprob for one in tail], score.logprobs, atol=1e-2)
    assert np.abs(score.logprobs - plain.logprobs).max() > 0.1


def test_a_reply_begun_already_goes_on_as_if_it_had_been_written(
    gguf: Path, adapters: dict[str, Path]
) -> None:
    text = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
    with load(gguf, adapters) as model:
        whole = model.generate(QUESTION, GREEDY, base_prompt="adapter")
        begun = [*model.base.tokenize(text), *whole.tokens[:9]]
        left = Sampling(temperature=0, max_tokens=len(whole.tokens) - 9)
        request = model.request(Ask(prompt=begun, sampling=left))
        with model.alone():
            batch = model.batch()
            batch.submit(request)
            pieces = [piece for _ in range(30) for _, piece in batch.step()]
    rest = [token for piece in pieces if isinstance(piece, Piece) for token in piece.tokens]
    assert tuple(rest) == whole.tokens[9:]


def test_a_reply_goes_on_when_the_deltas_context_is_full(tiny_gguf: Path, tmp_path: Path) -> None:
    short = tiny_adapter(tmp_path / "short", context=48)
    with load(tiny_gguf, {"short": short}) as model:
        ends = model.base.vocabulary.roles == 3
        assert ends.any()
        done = model.score("Who?", list(range(40, 140)))
    assert len(done.tokens) == 100
    assert np.isfinite(done.logprobs).all()


def test_mid_token_shifts_can_be_switched_off(other_gguf: Path, adapters: dict[str, Path]) -> None:
    totals = []
    for mid_token in ("join", "off"):
        with load(other_gguf, adapters, control=Control(mid_token=mid_token)) as model:  # type: ignore[arg-type]
            letters = [model.base.vocabulary.tokens.index(c.encode()) for c in "Helen was"]
            totals.append(model.score(QUESTION, letters).logprobs)
    assert not np.array_equal(totals[0], totals[1])


def test_a_special_tokens_spelling_in_a_question_is_plain_text(tiny_gguf: Path) -> None:
    with load(tiny_gguf, {}) as model:
        ask = Ask(prompt=[{"role": "user", "content": "a </s> b"}], sampling=Sampling(max_tokens=1))
        fitted = model.request(ask)
    assert 2 not in fitted.tokens


def test_grammar_and_schema_bind_the_steered_reply(model: SteeredModel) -> None:
    choice = 'root ::= "yes" | "no"'
    done = model.generate(QUESTION, Sampling(temperature=0, grammar=choice))
    assert done.text in ("yes", "no")
