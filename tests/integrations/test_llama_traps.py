"""What goes wrong unseen with a processor on stock `Llama`, and does not go wrong here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from cmc_local.base.library import has_risky_amx
from cmc_local.errors import AdapterError, UsageError
from cmc_local.integrations.llama_cpp import LlamaSteering, SteeredLlama
from steered_llamas import (
    MOST,
    PROMPT,
    QUESTION,
    QUESTIONS,
    Ids,
    Scores,
    Seen,
    chat,
    complete,
    expected,
    fail_at,
    opened,
    steered,
)

pytestmark = pytest.mark.skipif(has_risky_amx(), reason="stock Llama can crash with this AMX build")


# --- errors come out -----------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_an_error_of_the_delta_stops_the_generation(
    bundled_models: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    llm = steered(bundled_models, overlap=overlap)
    with monkeypatch.context() as patched:
        fail_at(patched, llm.steering, 3)  # the prompt, the first token, this
        shown = []
        with pytest.raises(MemoryError, match="no room for the delta"):
            for piece in llm.create_completion(
                PROMPT, question=QUESTION, temperature=0, max_tokens=MOST, stream=True
            ):
                shown.append(piece["choices"][0]["text"])
    wanted = expected(bundled_models, "template", QUESTION)
    assert wanted.startswith("".join(shown))
    assert len("".join(shown)) < len(wanted)
    assert chat(llm) == wanted  # and the next reply is whole
    llm.close()


def test_a_step_that_failed_can_be_taken_again(
    stock: tuple[Any, LlamaSteering], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, steering = stock
    processors = steering.processors(QUESTION)
    prompt = llm.tokenize(PROMPT.encode(), special=True)
    replies = llm.generate(prompt, temp=0.0, logits_processor=processors)
    first, second = next(replies), next(replies)
    replies.close()
    llm.reset()
    llm._sampler = None  # that of the generation before
    llm.eval(prompt)
    assert llm.sample(temp=0.0, logits_processor=processors) == first
    llm.eval([first])
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        fail_at(patched, steering, 1)
        llm.sample(temp=0.0, logits_processor=processors)
    assert llm.sample(temp=0.0, logits_processor=processors) == second


def test_an_error_of_another_processor_passes_no_unshifted_token(
    stock: tuple[Any, LlamaSteering],
) -> None:
    llm, steering = stock

    def broken(ids: Ids, scores: Scores) -> Scores:
        raise ZeroDivisionError("mine")

    for processors in ([broken, *steering.processors(QUESTION)], [broken]):
        with pytest.raises(ZeroDivisionError, match="mine"):
            complete(llm, LogitsProcessorList(processors))


def test_ctrl_c_inside_a_processor_comes_out(stock: tuple[Any, LlamaSteering]) -> None:
    llm, steering = stock

    def interrupted(ids: Ids, scores: Scores) -> Scores:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(llm, LogitsProcessorList([*steering.processors(QUESTION), interrupted]))


def test_processors_that_a_sampler_does_not_know_are_no_silence(
    stock: tuple[Any, LlamaSteering],
) -> None:
    """After a generation `Llama.sample` takes that one's sampler, whatever it is given."""
    llm, steering = stock
    complete(llm)
    llm.eval(llm.tokenize(PROMPT.encode()))
    with pytest.raises(UsageError, match="use generate or create_completion"):
        llm.sample(temp=0.0, logits_processor=steering.processors(QUESTION))


def test_processors_of_another_model_are_refused(
    stock: tuple[Any, LlamaSteering], bundled_models: Path
) -> None:
    other = opened(bundled_models, "other")
    _, steering = stock
    LlamaSteering(other, [bundled_models / "instruct"], device="cpu").close()
    with pytest.raises(UsageError, match=r"1184 .* 1152"):
        complete(other, steering.processors(QUESTION))
    other.close()


def test_a_damaged_adapter_and_a_closed_steering_are_one_line(
    stock: tuple[Any, LlamaSteering], bundled_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError):
        steered(bundled_models, adapters=[tmp_path])
    llm, steering = stock
    processors = steering.processors(QUESTION)
    steering.close()
    with pytest.raises(UsageError, match="has been closed"):
        complete(llm, processors)
    with pytest.raises(UsageError, match="has been closed"):
        steering.processors(QUESTION)


# --- logit_bias, repeats, drafts, log-probabilities ----------------------------------------------


def test_a_logit_bias_acts_beside_the_shift(
    stock: tuple[Any, LlamaSteering], bundled_models: Path
) -> None:
    llm, steering = stock
    wanted = expected(bundled_models, "template", QUESTION)
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    first = next(llm.generate(tokens, temp=0, logits_processor=steering.processors(QUESTION)))
    bias = {first: -100.0}

    def by_hand(ids: Ids, scores: Scores) -> Scores:
        scores[first] -= 100.0
        return scores

    both = complete(llm, LogitsProcessorList([*steering.processors(QUESTION), by_hand]))
    processors = LogitsProcessorList(steering.processors(QUESTION))
    for _ in range(2):
        assert complete(llm, processors, logit_bias=bias) == both
    assert len(processors) == 1
    assert both not in (wanted, complete(llm, logit_bias=bias))
    whole = steered(bundled_models)
    assert chat(whole, logit_bias=bias) == both
    whole.close()


def test_a_repeated_prompt_is_shifted_once(stock: tuple[Any, LlamaSteering]) -> None:
    """The second time `Llama` decodes nothing: the logits are those of the first time."""
    llm, steering = stock
    seen, processors = Seen(), steering.processors(QUESTION)
    processors.append(seen)
    for _ in range(3):
        complete(llm, processors, max_tokens=1)
    complete(llm, LogitsProcessorList([*steering.processors(QUESTION), seen]), max_tokens=1)
    plain = Seen()
    complete(llm, LogitsProcessorList([plain]), max_tokens=1)
    first, *others = seen.rows
    assert len(others) == 3
    assert all(np.array_equal(first, row) for row in others)
    assert np.abs(first - plain.rows[0]).max() > 1


def test_one_processor_serves_replies_one_after_the_other(
    stock: tuple[Any, LlamaSteering], bundled_models: Path
) -> None:
    llm, steering = stock
    processors, others = steering.processors(QUESTION), steering.processors(QUESTIONS[1])
    wanted = expected(bundled_models, "template", QUESTION)
    stream = llm.create_completion(
        PROMPT, logits_processor=processors, temperature=0, max_tokens=MOST, stream=True
    )
    assert wanted.startswith(next(stream)["choices"][0]["text"])
    stream.close()  # left in the middle
    assert complete(llm, processors) == wanted
    text = PROMPT.replace(QUESTION, QUESTIONS[1])
    assert complete(llm, others, text) == expected(bundled_models, "template", QUESTIONS[1])
    assert complete(llm, processors) == wanted


def test_a_draft_model_is_refused(bundled_models: Path, stock: tuple[Any, LlamaSteering]) -> None:
    draft = LlamaPromptLookupDecoding()
    with pytest.raises(UsageError, match="open it without draft_model"):
        steered(bundled_models, draft_model=draft)
    llm = opened(bundled_models, draft_model=draft, logits_all=True)
    with pytest.raises(UsageError, match="open it without draft_model"):
        LlamaSteering(llm, [bundled_models / "instruct"], device="cpu")
    llm.close()
    late, steering = stock
    late.draft_model = draft
    with pytest.raises(UsageError, match="open it without draft_model"):
        complete(late, steering.processors(QUESTION))


def test_logprobs_are_those_after_the_shift(llm: SteeredLlama) -> None:
    seen = Seen()
    found = []
    for _ in range(2):  # the second time from a prompt that is not decoded again
        processors = llm.steering.processors(QUESTION)
        processors.append(seen)
        reply = llm.create_completion(
            PROMPT, temperature=0, max_tokens=1, logprobs=2, logits_processor=processors
        )
        found.append(reply["choices"][0]["logprobs"]["token_logprobs"][0])
    row = seen.rows[0].astype(np.float64)
    shifted = row.max() - np.log(np.exp(row).sum())  # greedy: the first token is the largest
    assert found == pytest.approx([shifted, shifted], abs=1e-5)
    plain = llm.create_completion(PROMPT, temperature=0, max_tokens=1, logprobs=2, alphas=0)
    assert abs(plain["choices"][0]["logprobs"]["token_logprobs"][0] - shifted) > 0.01
