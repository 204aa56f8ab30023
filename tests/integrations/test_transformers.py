"""An adapter in `generate` of transformers: the same tokens as SteeredModel's, rows as they come.

The bundled template is both a GGUF file and a Hugging Face folder of the same numbers; the model of
another vocabulary is rebuilt from its GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cmc_local import Sampling, SteeredModel
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.delta.source import Feed
from cmc_local.errors import DeviceError, TokenizerError, UsageError
from cmc_local.integrations import transformers as module
from cmc_local.integrations.transformers import (
    CopiedPrefixes,
    RowReply,
    Rows,
    SteeringProcessor,
)
from cmc_local.settings import Control
from cmc_local.steer.loaded_adapter import ready
from cmc_local.steer.steering import Steering
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm
from fakes import AB, END, NEWLINE, A, B, FakeShift, tokenizer_json, vocabulary
from reference import folder as rebuilt

MOST = 40
GREEDY = Sampling(temperature=0, max_tokens=MOST)
TIE = 0.02
"""Log-probabilities this close may be the other way round: llama.cpp's kernels work in F16."""


@pytest.fixture(scope="module")
def questions(bundled_models: Path) -> list[str]:
    lines = (bundled_models / "world" / "questions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines[:40:10]]


def fast(begin: str, end: str, **how: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        bos_token=begin, eos_token=end, pad_token=end, padding_side="left", **how
    )


@pytest.fixture(scope="module")
def words(bundled_models: Path) -> PreTrainedTokenizerFast:
    file = bundled_models / "template" / "tokenizer.json"
    return fast("<s>", "</s>", tokenizer_file=str(file))


@pytest.fixture(scope="module")
def model(bundled_models: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled_models / "template", dtype=torch.float32)


@pytest.fixture(scope="module")
def steered(bundled_models: Path) -> Iterator[SteeredModel]:
    with loaded(bundled_models, "template") as found:
        yield found


def loaded(models: Path, name: str) -> SteeredModel:
    return SteeredModel.load(
        models / f"{name}.gguf", [models / "instruct"], threads=1, delta_device="cpu"
    )


def processor(words: Any, models: Path, prompts: list[str], **how: Any) -> SteeringProcessor:
    return SteeringProcessor(words, models / "instruct", prompts=prompts, device="cpu", **how)


def generate(model: Any, words: Any, steer: SteeringProcessor, **how: Any) -> Any:
    """What `generate` returns, and how long its prompts were."""
    texts = steer.base_texts()
    inputs = words(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    options = {"do_sample": False, "max_new_tokens": MOST, **how}
    return model.generate(**inputs, logits_processor=[steer], **options), len(inputs.input_ids[0])


def replies(model: Any, words: Any, steer: SteeringProcessor, **how: Any) -> list[tuple[int, ...]]:
    """The tokens of each row's reply, without its end and what pads it."""
    found, start = generate(model, words, steer, **how)
    rows = [row[start:].tolist() for row in found]
    end = words.eos_token_id
    return [tuple(row[: row.index(end)] if end in row else row) for row in rows]


def assert_same(steered: SteeredModel, question: str, got: tuple[int, ...]) -> None:
    """The tokens of SteeredModel, up to where two were as likely as each other."""
    end = steered.base.vocabulary.eos_id
    assert end is not None
    expected = (*steered.generate(question, GREEDY).tokens, end)
    pairs = zip(expected, (*got, end), strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if at is not None:
        ours = steered.score(question, expected[: at + 1]).logprobs[-1]
        theirs = steered.score(question, (*expected[:at], (*got, end)[at])).logprobs[-1]
        assert abs(ours - theirs) < TIE


# --- whole replies ----------------------------------------------------------------------------


def test_a_batch_says_what_the_steered_model_says(
    model: Any, words: Any, steered: SteeredModel, bundled_models: Path, questions: list[str]
) -> None:
    steer = processor(words, bundled_models, questions)
    found = replies(model, words, steer)
    assert len(set(map(len, found))) > 1, "some rows should end before others"
    assert found != replies(model, words, processor(words, bundled_models, questions, alpha=0.0))
    for question, got in zip(questions, found, strict=True):
        assert_same(steered, question, got)


def test_a_base_of_another_vocabulary(
    bundled_models: Path, questions: list[str], tmp_path: Path
) -> None:
    tokens = rebuilt.bundled_tokenizer(bundled_models, "other")
    other = rebuilt.from_gguf(bundled_models / "other.gguf", tmp_path / "other", tokens)
    with loaded(bundled_models, "other") as reference:
        known = reference.base.vocabulary
        assert known.bos_id is not None and known.eos_id is not None
        ends = known.names[known.bos_id], known.names[known.eos_id]
        words = fast(*ends, tokenizer_object=tokens)
        found = replies(other, words, processor(words, bundled_models, questions))
        for question, got in zip(questions, found, strict=True):
            assert_same(reference, question, got)


def test_the_scores_of_beams_are_those_of_their_tokens(
    model: Any, words: Any, steered: SteeredModel, bundled_models: Path, questions: list[str]
) -> None:
    steer = processor(words, bundled_models, questions[:2])
    how = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True}
    found, start = generate(model, words, steer, output_scores=True, **how)
    end = words.eos_token_id
    for row, score in enumerate(found.sequences_scores.tolist()):
        tokens = found.sequences[row, start:].tolist()
        tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        # A beam's score is the mean of its tokens' log-probabilities, its end among them.
        expected = steered.score(questions[row // 3], tokens).total / len(tokens)
        assert score == pytest.approx(expected, abs=TIE)
    assert len({tuple(row) for row in found.sequences.tolist()}) == 6


def test_sampling_draws_from_the_shifted_scores(
    model: Any, words: Any, bundled_models: Path, questions: list[str]
) -> None:
    steer = processor(words, bundled_models, questions[:2])
    greedy = replies(model, words, steer)
    how = {"do_sample": True, "num_return_sequences": 2}
    sharp = replies(model, words, steer, top_k=1, **how)
    assert sharp == [greedy[0], greedy[0], greedy[1], greedy[1]]
    torch.manual_seed(1)
    loose = replies(model, words, steer, top_k=0, temperature=2.0, **how)
    assert len(set(loose)) == 4


def test_scores_wider_than_the_tokenizer(
    words: Any, model: Any, bundled_models: Path, questions: list[str]
) -> None:
    wide = AutoModelForCausalLM.from_pretrained(bundled_models / "template", dtype=torch.float32)
    wide.resize_token_embeddings(len(words) + 8, mean_resizing=False)
    with torch.no_grad():  # as likely as nothing: the bundled models have no token to spare
        wide.get_output_embeddings().weight[len(words) :] = 0
    steer = processor(words, bundled_models, questions[:1])
    scores = torch.zeros(1, len(words) + 8)
    shifted = steer(torch.tensor([[1, 5]]), scores)[0]
    before, after = scores[0].softmax(0), shifted.softmax(0)
    # What has no counterpart keeps its total probability.
    assert after[-8:].sum().item() == pytest.approx(before[-8:].sum().item(), rel=0.2)
    assert len(set(after[-8:].tolist())) == 1
    steer.begin(questions[:1])
    plain = processor(words, bundled_models, questions[:1])
    assert replies(wide, words, steer) == replies(model, words, plain)


# --- one call ---------------------------------------------------------------------------------


def test_a_rows_log_sum_exp_stays_and_masked_tokens_stay_masked(
    words: Any, bundled_models: Path
) -> None:
    steer = processor(words, bundled_models, ["Where?"])
    scores = torch.randn(1, len(words)).log_softmax(-1)
    scores[0, 7] = -torch.inf
    shifted = steer(torch.tensor([[1, 5]]), scores)
    assert shifted.logsumexp(-1).item() == pytest.approx(scores.logsumexp(-1).item(), abs=1e-4)
    assert shifted[0, 7] == -torch.inf and not shifted.isnan().any()
    assert (shifted - scores).nan_to_num().abs().max() > 1


def test_alpha_0_is_the_base_bit_for_bit(words: Any, bundled_models: Path) -> None:
    scores = torch.randn(1, len(words))
    steer = processor(words, bundled_models, ["Where?"], alpha=0.0)
    assert steer(torch.tensor([[1, 5]]), scores) is scores


def test_an_error_of_the_delta_comes_out_and_the_next_call_is_whole(
    model: Any,
    words: Any,
    bundled_models: Path,
    questions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = replies(model, words, processor(words, bundled_models, questions))
    steer = processor(words, bundled_models, questions)
    calls = 0
    feed_many = OnnxDelta.feed_many

    def failing(self: OnnxDelta, feeds: list[Feed]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            feed_many(self, feeds[:1])
            raise DeviceError("the delta's device is gone")
        return feed_many(self, feeds)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxDelta, "feed_many", failing)
        with pytest.raises(DeviceError, match="is gone"):
            generate(model, words, steer)
    assert replies(model, words, steer) == expected


def test_what_cannot_be_steered_is_refused(words: Any, bundled_models: Path) -> None:
    steer = processor(words, bundled_models, ["Where?", "Who?"])
    scores = torch.zeros(3, len(words))
    with pytest.raises(UsageError, match="3 rows, which 2 prompts"):
        steer(torch.ones(3, 2, dtype=torch.long), scores)
    steer(torch.ones(2, 2, dtype=torch.long), scores[:2])
    for other in (torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 1, dtype=torch.long)):
        with pytest.raises(UsageError, match="call `begin`"):
            steer(other, scores[:2])
    steer.begin(["Where?", "Who?"])
    with pytest.raises(UsageError, match=r"only 9: .*resize_token_embeddings"):
        steer(torch.zeros(2, 3, dtype=torch.long), scores[:2, :9])
    for prompts in ("Where?", []):
        with pytest.raises(UsageError, match="prompts must be a list"):
            steer.begin(prompts)
    with pytest.raises(TokenizerError, match="give a fast"):
        SteeringProcessor({}, bundled_models / "instruct", prompts=["Where?"])


# --- rows that change places ------------------------------------------------------------------


def tokens_told(tokens: tuple[int, ...]) -> tuple[float, ...]:
    """A row that tells which tokens it was computed from: as digits to the base of 7, and how many.

    Both are exact in float32 for up to eight tokens; of more, the last eight count.
    """
    number = 0
    for token in tokens[-8:]:
        number = number * 7 + token + 1
    return (float(number), float(len(tokens)), 0.0, 0.0, 0.0)


def rows_on(source: FakeShift, questions: list[str]) -> Rows:
    found = ready(
        CopiedPrefixes(source),
        DeltaTokenizer(tokenizer_json()),
        vocabulary(),
        Control(mid_token="off"),
        name="tiny",
        form=PromptForm("tiny", "{query}\n"),
    )
    rows = Rows(found, vocabulary())
    rows.ask([[{"role": "user", "content": text}] for text in questions])
    return rows


def told_alone(question: str, reply: tuple[int, ...]) -> list[float]:
    """What a delta that has only this row to follow says."""
    tokenizer = DeltaTokenizer(tokenizer_json())
    alone = Steering(FakeShift(tokens_told), tokenizer)
    message = {"role": "user", "content": question}
    form = PromptForm("tiny", "{query}\n")
    alone.begin(tokenizer.prompt(form, [message], max_tokens=32))  # type: ignore[list-item]
    for token in reply:
        alone.push(vocabulary().tokens[token])
    return list(alone.forecasts[0].shift.tolist())


STEPS = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([A, B, AB, NEWLINE, END])), min_size=3)
    .map(lambda rows: rows[:3])
    .filter(lambda rows: len(rows) == 3),
    max_size=8,
)


@given(STEPS, st.booleans())
def test_beams_in_any_order_say_what_each_says_alone(
    steps: list[list[tuple[int, int]]], copies: bool
) -> None:
    """Each step makes three rows of two prompts, each of any row before it and one more token."""
    questions = ["a", "ba"]
    source = FakeShift(tokens_told)
    if not copies:
        source.copy = lambda *_: False  # type: ignore[method-assign]
    rows = rows_on(source, questions)
    replies = [[()] * 3, [()] * 3]
    for step in [None, *steps]:
        if step is not None:
            replies = [[(*group[parent], token) for parent, token in step] for group in replies]
        asked = [RowReply(number, one) for number, group in enumerate(replies) for one in group]
        with pytest.MonkeyPatch.context() as patch:  # replies are short: copy a single token too
            patch.setattr(module, "WORTH_COPYING", 1)
            places = rows.follow(asked)
        for one, place in zip(asked, places, strict=True):
            assert place.shift.tolist() == told_alone(questions[one.prompt], one.tokens)


def test_a_row_that_goes_on_feeds_its_token_alone_wherever_it_stands() -> None:
    source = FakeShift(tokens_told)
    rows = rows_on(source, ["a"])
    rows.follow([RowReply(0, ()), RowReply(0, ())])
    rows.follow([RowReply(0, (A,)), RowReply(0, (B,))])
    source.fed.clear()
    rows.follow([RowReply(0, (B, NEWLINE)), RowReply(0, (A, NEWLINE))])
    assert source.fed == [(NEWLINE,), (NEWLINE,)]


def test_a_second_row_from_one_reply_copies_what_the_first_has_consumed() -> None:
    source = FakeShift(tokens_told)
    rows = rows_on(source, ["a"])
    long = (A, NEWLINE) * 10
    for at in range(len(long) + 1):
        rows.follow([RowReply(0, long[:at]), RowReply(0, (B,) * at)])
    source.fed.clear()
    rows.follow([RowReply(0, (*long, A)), RowReply(0, (*long, NEWLINE))])
    # The question, its newline and 20 tokens are copied. Computed are the prompt's last token, for
    # the shift that a reply begins with, and the token of each row.
    assert source.copied[-1][2] == 22
    assert source.fed == [(NEWLINE,), (A,), (NEWLINE,)]


def test_rows_that_are_wanted_are_computed_not_copied() -> None:
    source = FakeShift(tokens_told)
    shared = CopiedPrefixes(source)
    tokens = [A, NEWLINE] * 12
    expected = shared.feed(0, tokens, 2)
    found = shared.feed(1, tokens, 2)
    assert source.copied == [(0, 1, 22)] and source.fed[-1] == (A, NEWLINE)
    assert np.array_equal(found, expected)
    assert shared.length(1) == 24
    shared.truncate(1, 3)
    assert np.array_equal(shared.feed(2, tokens)[0], expected[1])
    assert source.copied[1:] == [(0, 2, 23)]  # slot 1 has forgotten them
    assert shared.feed(3, tokens, 24).shape == (24, 5)  # all rows wanted: nothing to copy
    assert len(source.copied) == 2
