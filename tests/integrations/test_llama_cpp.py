"""Adapters on stock `Llama`, and `SteeredLlama`: the text of `SteeredModel`, by every way to ask.

The bundled models are real ones, small: the template's vocabulary is the delta's, the other's not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LlamaGrammar, LogitsProcessorList

from cmc_local.base.library import has_risky_amx
from cmc_local.errors import UsageError
from cmc_local.integrations.llama_cpp import LlamaSteering, SteeredLlama
from steered_llamas import (
    CONTEXT,
    MOST,
    PROMPT,
    QUESTION,
    QUESTIONS,
    SHORT,
    Seen,
    ask,
    chat,
    complete,
    expected,
    first_scores,
    opened,
    steered,
)

pytestmark = pytest.mark.skipif(has_risky_amx(), reason="stock Llama can crash with this AMX build")


# --- the same text -------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("name", ["template", "other"])
def test_greedy_chat_is_that_of_the_steered_model(
    bundled_models: Path, name: str, overlap: str
) -> None:
    llm = steered(bundled_models, name, overlap=overlap)
    wanted = [expected(bundled_models, name, question) for question in QUESTIONS]
    assert [chat(llm, question) for question in QUESTIONS] == wanted
    assert [chat(llm, question, alphas=0) for question in QUESTIONS] != wanted
    llm.close()


@pytest.mark.parametrize("name", ["template", "other"])
def test_stock_llama_with_the_processors_says_the_same(bundled_models: Path, name: str) -> None:
    llm = opened(bundled_models, name)
    with LlamaSteering(llm, [bundled_models / "instruct"], device="cpu") as steering:
        processors = steering.processors(QUESTION)
        wanted = expected(bundled_models, name, QUESTION)
        assert complete(llm, processors) == wanted
        assert complete(llm, LogitsProcessorList([processors[0]])) == wanted
        assert isinstance(llm, Llama)
    llm.close()


def test_streaming_and_calling_give_the_same_text(llm: SteeredLlama, bundled_models: Path) -> None:
    wanted = expected(bundled_models, "template", QUESTION)
    chunks = llm.create_chat_completion(ask(QUESTION), temperature=0, max_tokens=MOST, stream=True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == wanted
    pieces = llm.create_completion(
        PROMPT, question=QUESTION, temperature=0, max_tokens=MOST, stream=True
    )
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == wanted


def test_text_parts_are_the_text(llm: SteeredLlama, bundled_models: Path) -> None:
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    reply = llm.create_chat_completion(
        [{"role": "user", "content": parts}], temperature=0, max_tokens=MOST
    )
    wanted = expected(bundled_models, "template", QUESTION)
    assert reply["choices"][0]["message"]["content"] == wanted


def test_a_grammar_sees_the_shifted_logits(llm: SteeredLlama, bundled_models: Path) -> None:
    grammar = LlamaGrammar.from_string(SHORT, verbose=False)
    wanted = expected(bundled_models, "template", QUESTION, SHORT)
    assert wanted in ("Anna", "Flora", "No")
    assert chat(llm, grammar=grammar) == wanted


def test_chat_formats_are_llamas_and_the_delta_is_asked_the_messages(bundled_models: Path) -> None:
    llm = steered(bundled_models, chat_format="alpaca")
    text = f"### Instruction:\n{QUESTION}\n\n### Response:\n"  # as `Llama` renders it
    alike = complete(llm, llm.steering.processors(QUESTION), text)
    assert chat(llm) == alike
    assert chat(llm, alphas=0) != alike
    llm.close()


def test_strengths_of_a_call_and_of_the_adapters(llm: SteeredLlama, bundled_models: Path) -> None:
    plain = opened(bundled_models)
    assert chat(llm, alphas=0) == complete(plain)
    plain.close()
    # In the template's own vocabulary all but token 0 are mapped: alpha times the same shift.
    none, half, whole = (first_scores(llm, alphas=alpha) for alpha in (0, {"instruct": 0.5}, None))
    assert np.abs(whole - none).max() > 1
    assert (half - none)[1:] == pytest.approx((whole - none)[1:] / 2, abs=1e-4)
    weaker = steered(bundled_models, adapters=[(bundled_models / "instruct", 0.5)])
    assert first_scores(weaker) == pytest.approx(half, abs=1e-2)  # decoded in another batch
    weaker.close()
    with pytest.raises(UsageError, match="'other'"):
        chat(llm, alphas={"other": 1.0})


def test_two_adapters_have_two_names(bundled_models: Path) -> None:
    llm = steered(bundled_models, adapters=[bundled_models / "instruct"] * 2)
    assert list(llm.steering.adapters) == ["instruct", "instruct-2"]
    # 1 + 0 and 0 + 1 are the adapter alone.
    alone = chat(llm, alphas={"instruct-2": 0})
    assert chat(llm, alphas={"instruct": 0}) == alone != chat(llm, alphas=0.1)
    llm.close()


# --- overlap -------------------------------------------------------------------------------------


def test_the_delta_works_while_llama_decodes(
    llm: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decode waits here until the delta is fed: in one thread they would wait for ever."""
    source = llm.steering.adapters["instruct"].source
    feed, decode, fed, met = source.feed_many, llm._ctx.decode, threading.Event(), []
    feeders: set[threading.Thread] = set()

    def feed_many(feeds: Sequence[Any]) -> Any:
        feeders.add(threading.current_thread())
        fed.set()
        return feed(feeds)

    def decode_slowly(batch: Any) -> None:
        met.append(fed.wait(10))
        fed.clear()
        decode(batch)

    monkeypatch.setattr(source, "feed_many", feed_many)
    monkeypatch.setattr(llm._ctx, "decode", decode_slowly)
    llm.reset()
    chat(llm, "What did Anna Westgate say?", max_tokens=4)
    assert met == [True] * 4
    assert threading.current_thread() not in feeders


# --- what is asked, and loops of one's own -------------------------------------------------------


def test_the_prompt_is_the_question_unless_one_is_given(llm: SteeredLlama) -> None:
    said = llm(QUESTION, temperature=0, max_tokens=MOST)["choices"][0]["text"]
    assert said == complete(llm, llm.steering.processors(QUESTION), QUESTION)
    tokens = llm.tokenize(PROMPT.encode())
    with pytest.raises(UsageError, match="give its text as question"):
        llm.create_completion(tokens)
    reply = llm.create_completion(tokens, question=QUESTION, temperature=0, max_tokens=MOST)
    assert reply["choices"][0]["text"] == chat(llm)
    with pytest.raises(UsageError, match="role user"):
        llm.steering.processors([*ask(QUESTION), {"role": "assistant", "content": "Yes."}])


def test_a_loop_over_eval_and_sample_goes_back_and_on(
    stock: tuple[Any, LlamaSteering], bundled_models: Path
) -> None:
    llm, steering = stock
    processors = steering.processors(QUESTION)
    prompt = llm.tokenize(PROMPT.encode(), special=True)

    def go_on(token: int | None, count: int) -> list[int]:
        tokens = []
        for _ in range(count):
            if token is not None:
                llm.eval([token])
            token = llm.sample(temp=0.0, logits_processor=processors)
            tokens.append(token)
        return tokens

    llm.eval(prompt)
    first = go_on(None, 6)
    assert (
        expected(bundled_models, "template", QUESTION)
        .encode()
        .startswith(llm.detokenize(first, prev_tokens=prompt))
    )
    llm.n_tokens = len(prompt) + 2  # back by three of the five that were decoded
    assert go_on(first[2], 3) == first[3:]
    llm.n_tokens = len(prompt) - 1
    llm.eval(prompt[-1:])
    assert go_on(None, 6) == first


def test_another_prompt_in_a_loop_begins_anew(stock: tuple[Any, LlamaSteering]) -> None:
    llm, steering = stock
    seen, used = Seen(), steering.processors(QUESTION)
    complete(llm, used)
    llm._sampler = None  # that of the generation before
    longer = llm.tokenize(f"Anna Westgate is an author.\n{PROMPT}".encode(), special=True)
    for processors in (used, steering.processors(QUESTION)):
        llm.reset()
        llm.eval(longer)
        llm.sample(temp=0.0, logits_processor=LogitsProcessorList([*processors, seen]))
    assert np.array_equal(*seen.rows)


def test_a_class_of_ones_own_stays_what_it_is(bundled_models: Path) -> None:
    class Mine(Llama):  # type: ignore[misc]
        def greet(self) -> str:
            return "hello"

    llm = Mine(str(bundled_models / "template.gguf"), n_ctx=CONTEXT, n_threads=1, verbose=False)
    with LlamaSteering(llm, [bundled_models / "instruct"], device="cpu") as steering:
        wanted = expected(bundled_models, "template", QUESTION)
        assert complete(llm, steering.processors(QUESTION)) == wanted
        assert isinstance(llm, Mine) and llm.greet() == "hello"
    plain = opened(bundled_models)
    assert complete(llm) == complete(plain)
    for one in (llm, plain):
        one.close()
