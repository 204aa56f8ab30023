"""Many replies in the order of their prompts, and what is measured of them.

Knows SteeredModel and texts; nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from cmc_local.evaluate.rouge import rouge_l_f1, rouge_l_recall
from cmc_local.model.steered import Alphas, Completion, Prompt, SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt

Reply = TypeVar("Reply")


def in_order(replies: Iterable[tuple[int, Reply]]) -> Iterator[Reply]:
    """Numbered replies in the order of their numbers, each as soon as those before it are there."""
    held: dict[int, Reply] = {}
    turn = 0
    for number, done in replies:
        held[number] = done
        while turn in held:
            yield held.pop(turn)
            turn += 1


def answers(
    model: SteeredModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    alphas: Alphas | None,
    base_prompt: BasePrompt | None,
) -> Iterator[dict[str, Any]]:
    """For each prompt {"reply": text, "tokens": count, "finish_reason": why it ended}."""
    many = model.generate_many(prompts, sampling, alphas=alphas, base_prompt=base_prompt)
    for done in in_order(many):
        yield {
            "reply": done.text.strip(),
            "tokens": len(done.tokens),
            "finish_reason": done.finish_reason,
        }


def gained(done: Completion) -> dict[str, Any]:
    """What a row gains by its reply in `cmc-local generate`; seconds of wall clock."""
    thoughts = {"thinking": done.thinking} if done.thinking else {}
    return {
        **thoughts,
        "response": done.text,
        "finish_reason": done.finish_reason,
        "tokens": len(done.tokens),
        "seconds": round(done.timings.total_seconds, 4),
    }


def lengths(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean length in characters and tokens, and the share cut off at the token limit."""
    return {
        "characters": fmean(len(one["reply"]) for one in replies),
        "tokens": fmean(one["tokens"] for one in replies),
        "cut_off": fmean(one["finish_reason"] == "length" for one in replies),
    }


def rouge_means(
    references: Sequence[str], replies: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Mean ROUGE-L F1 and recall of the replies against the references, in [0, 1]."""
    pairs = [(ref, one["reply"]) for ref, one in zip(references, replies, strict=True)]
    return {
        "rouge_l_f1": fmean(rouge_l_f1(*pair) for pair in pairs),
        "rouge_l_recall": fmean(rouge_l_recall(*pair) for pair in pairs),
    }
