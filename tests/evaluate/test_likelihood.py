"""Held-out answers and TOFU's sets on a fake base whose every probability is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cmc_local.errors import InputError, PromptTooLong
from cmc_local.evaluate import tofu_run
from cmc_local.evaluate.answering import answers, lengths, rouge_means
from cmc_local.evaluate.journal import Journal
from cmc_local.evaluate.nll import answer_scores, nll_means
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from fakes import END, A, B, FakeBase, FakeShift, adapter, always

# </s>, "a", "b", "ab", newline
P = (0.1, 0.4, 0.3, 0.1, 0.1)


def steered() -> SteeredModel:
    """Plain: "a" at 0.4. Steered: all of "a" doubled before normalising, 0.8 / 1.4 = 4/7."""
    base = FakeBase(always(*map(math.log, P)))
    model = SteeredModel(base, base.sampler)
    model.attach(adapter(FakeShift(always(0, math.log(2), 0, 0, 0))))
    return model


def test_an_answer_costs_its_tokens_nats() -> None:
    talk = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "aa"}]
    with steered() as model:
        (plain,) = answer_scores(model, [talk], alphas=0.0, base_prompt=None)
        (moved,) = answer_scores(model, [talk], alphas=1.0, base_prompt=None)
    assert plain["nats"] == pytest.approx(-2 * math.log(0.4))
    assert moved["nats"] == pytest.approx(-2 * math.log(4 / 7))
    assert (plain["tokens"], plain["characters"], plain["greedy"]) == (2, 2, 2)


def test_an_answer_that_does_not_fit_is_named() -> None:
    base = FakeBase(always(*map(math.log, P)), n_ctx=8)
    talk = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a" * 50}]
    with (
        SteeredModel(base, base.sampler) as model,
        pytest.raises(PromptTooLong, match=f"the answer '{'a' * 40}': .*do not fit"),
    ):
        list(answer_scores(model, [talk], alphas=None, base_prompt=None))


def test_longer_answers_count_for_more() -> None:
    short = {"nats": 1.0, "tokens": 1, "characters": 2, "greedy": 1}
    long = {"nats": 2.0, "tokens": 5, "characters": 6, "greedy": 2}
    found = nll_means([short, long])
    # 3 nats over 6 tokens, over 8 characters; 3 of 6 tokens greedy
    assert found["nll"] == pytest.approx(0.5)
    assert found["bits_per_character"] == pytest.approx(3 / math.log(2) / 8)
    assert found["greedy"] == pytest.approx(0.5)


def test_replies_come_in_the_order_of_their_prompts() -> None:
    # As many letters as the prompt has, then the end: the shorter prompt is answered first.
    def rule(seen: tuple[int, ...]) -> tuple[float, ...]:
        at = seen.index(4)
        return (1, 0, 0, 0, 0) if len(seen) - at > at else (0, 0, 1, 0, 0)

    base = FakeBase(rule)
    with SteeredModel(base, base.sampler, limits=Limits(parallel=2)) as model:
        found = list(answers(model, ["aaa", "a"], Sampling(), alphas=None, base_prompt=None))
    assert [one["reply"] for one in found] == ["bbb", "b"]
    assert [one["tokens"] for one in found] == [3, 1]


def test_lengths_and_rouge_are_means_over_replies() -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is absent: install the extra `dev`")
    replies = [
        {"reply": "the cat sat", "tokens": 3, "finish_reason": "stop"},
        {"reply": "no", "tokens": 1, "finish_reason": "length"},
    ]
    assert lengths(replies) == {"characters": 6.5, "tokens": 2.0, "cut_off": 0.5}
    found = rouge_means(["the cat", "yes"], replies)
    # recall 2/2 and 0; precision 2/3, so F1 4/5 and 0
    assert found == {"rouge_l_f1": pytest.approx(0.4), "rouge_l_recall": pytest.approx(0.5)}


def test_tofu_counts_the_token_that_ends_an_answer() -> None:
    with steered() as model:
        found = tofu_run.score_with_end(model, "b", "a", alphas=0.0, base_prompt=None)
    assert found.tokens == (A, END)
    assert found.total == pytest.approx(math.log(0.4 * 0.1))


def tofu_folder(folder: Path) -> Path:
    """One question a set: the right answer "a", a wrong one "b"."""
    item = json.dumps({"question": "b", "answer": "a", "perturbed_answer": ["b"]}) + "\n"
    for name in ("forget01", *tofu_run.KEPT):
        (folder / f"{name}_perturbed.json").write_text(item, "utf-8")
    return folder


def test_a_set_is_measured_answer_by_answer(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is absent: install the extra `dev`")
    sets = tofu_run.read_sets(tofu_folder(tmp_path), "01")
    told: list[None] = []
    with steered() as model, Journal(None, {}) as journal:
        found = tofu_run.tofu_measures(
            model,
            sets,
            Sampling(temperature=0.0, max_tokens=1),
            lambda part, items, work: journal.values(part, items, work, lambda: told.append(None)),
            alphas=0.0,
            base_prompt=None,
        )
    forget = found["forget"]
    # Two tokens each, the end included: sqrt(0.4 * 0.1) and sqrt(0.3 * 0.1).
    assert forget.probability == pytest.approx([math.sqrt(0.04)])
    assert forget.truth_ratio == pytest.approx([math.sqrt(0.03 / 0.04)])
    assert forget.rouge == (1.0,)  # the likeliest token is "a"
    assert len(told) == tofu_run.count_values(sets) == 4 * (2 + 1)
    metrics = tofu_run.tofu_metrics(found)
    assert metrics["forget_probability"] == pytest.approx(0.2)
    assert metrics["retain_truth_ratio"] == pytest.approx(1 - math.sqrt(0.75))
    # choices: 0.2 / (0.2 + sqrt(0.03))
    assert metrics["world_facts_probability"] == pytest.approx(0.2 / (0.2 + math.sqrt(0.03)))
    assert set(found) == {"forget", *tofu_run.KEPT} and B != A


def test_a_folder_without_the_files_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        tofu_run.read_sets(tmp_path / "none", "01")
    with pytest.raises(InputError, match=r"forget01_perturbed\.json cannot be read"):
        tofu_run.read_sets(tmp_path, "01")
