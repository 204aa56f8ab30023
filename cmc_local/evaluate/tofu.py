"""TOFU's measures of forgetting, exactly as its code takes them, for any model.

    items.json --> read_items --> measure(items, score, reply) --> SetMeasures of one question set
    retain, real authors, world facts --> utility          nine means and their harmonic mean
    forget set, unlearned and retrained --> forget_quality  a p-value

Source: Maini et al. 2024 (arXiv 2401.06121), section 2.2.2, and the code published with it. Where
the two differ the code is followed, since the figures that people compare with come from it; the
docstrings say where. Knows two callables, `score` and `reply`; nothing of models, prompts, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from cmc_local.errors import DataError, InputError
from cmc_local.evaluate.optional_imports import import_optional
from cmc_local.evaluate.rouge import rouge_l_recall
from cmc_local.text.records import read_records

Score = Callable[[list[tuple[str, str]]], list[tuple[float, int]]]
"""(question, answer) pairs -> for each answer its total log-probability in nats, and its tokens.

TOFU counts the end token in both.
"""

Reply = Callable[[list[str]], list[str]]
"""Questions -> the model's greedy replies."""

LARGEST_LOG_RATIO = 700.0
"""Ratios stay within exp(-700) and exp(700): they and their inverses are finite in float64."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer, the same in other words, and wrong answers of that form."""

    question: str
    answer: str
    paraphrase: str
    perturbed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetMeasures:
    """One set of questions, measured: a number for each, in the items' order."""

    rouge: tuple[float, ...]
    """ROUGE-L recall of the reply against the answer, in [0, 1]."""
    probability: tuple[float, ...]
    """The answer's normalised probability, in [0, 1]."""
    choice_probability: tuple[float, ...]
    """The answer's share of that and the wrong answers' probabilities, in [0, 1]."""
    truth_ratio: tuple[float, ...]
    """Wrong answers over the right one in other words; above 0, above 1 where they are likelier."""


@dataclass(frozen=True, slots=True)
class Means:
    """A set's three figures in [0, 1], as they enter the tables."""

    rouge: float
    probability: float
    truth_ratio: float


@dataclass(frozen=True, slots=True)
class Utility:
    """What a model is still good for: nine means and their harmonic mean, all in [0, 1]."""

    retain: Means
    real_authors: Means
    world_facts: Means
    model_utility: float


def per_token(log_probability: float, tokens: int) -> float:
    """log(P(a|q)^(1/|a|)) in nats, from an answer's log P(a|q) and its |a| tokens.

    InputError where they are none of an answer: not finite, above 0, or without tokens.
    """
    # Rounding in float32 may put a certain answer a little above 0.
    if not math.isfinite(log_probability) or log_probability > 1e-3 or tokens < 1:
        raise InputError(
            f"the model gives an answer of {tokens} tokens the log-probability {log_probability}: "
            "use a model and adapters that are whole"
        )
    return log_probability / tokens


def choice_probability(right: float, wrong: Sequence[float]) -> float:
    """p(right) / (p(right) + sum of p(wrong)), from per-token log-probabilities in nats.

    The probability for real authors and world facts. The paper has P(a|q) there, its code
    P(a|q)^(1/|a|), which does not favour short answers; so has this.

    >>> round(choice_probability(math.log(0.6), [math.log(0.1), math.log(0.3)]), 12)
    0.6
    """
    # Divided by p(right): no term underflows to a sum of 0.
    return 1 / (1 + math.fsum(_ratio(one - right) for one in wrong))


def truth_ratio(paraphrase: float, perturbed: Sequence[float]) -> float:
    """Wrong answers' probability over that of the paraphrase, from per-token log-probabilities.

    The wrong answers' mean is the geometric one, the exponential of their mean log-probability, as
    in TOFU's code; the paper has the arithmetic one. The code's own ratio is the inverse of this.

    >>> round(truth_ratio(math.log(0.5), [math.log(0.1), math.log(0.4)]), 12)  # sqrt(0.04) / 0.5
    0.4
    """
    return _ratio(fmean(perturbed) - paraphrase)


def truth_utility(ratio: float) -> float:
    """max(0, 1 - ratio): 1 where the wrong answers have no probability."""
    return max(0.0, 1.0 - ratio)


def truth_neutrality(ratio: float) -> float:
    """min(ratio, 1 / ratio): 1 where right and wrong are equally likely. In TOFU's code only."""
    return ratio if ratio < 1 else 1 / ratio


def read_items(path: Path) -> list[Item]:
    """The items of a JSON lines file; DataError names file and line.

    Fields: question, answer, perturbed_answer (a list) and paraphrased_answer; where the last is
    absent, as for real authors and world facts, the answer stands for it.
    """
    items = []
    for where, record in read_records(path):
        question, answer = _text(record, "question", where), _text(record, "answer", where)
        paraphrase = answer
        if "paraphrased_answer" in record:
            paraphrase = _text(record, "paraphrased_answer", where)
        items.append(Item(question, answer, paraphrase, _perturbed(record, where)))
    if not items:
        raise DataError(f"{path} holds no question: give one JSON object a line")
    return items


def measure(items: Sequence[Item], score: Score, reply: Reply) -> SetMeasures:
    """A model on one set of questions.

    `score` and `reply` are each called once, with everything; a pair is scored once however often
    it stands in the items. DataError without items; InputError for log-probabilities that are none;
    ValueError if a callable answers for more or fewer than it was asked.
    """
    if not items:
        raise DataError("there is no question to measure: give at least one")
    pairs = list(dict.fromkeys(pair for item in items for pair in _pairs(item)))
    scores = [per_token(*scored) for scored in score(pairs)]
    logs = dict(zip(pairs, scores, strict=True))
    replies = reply([item.question for item in items])
    right = [logs[item.question, item.answer] for item in items]
    wrong = [[logs[item.question, one] for one in item.perturbed] for item in items]
    paraphrased = [logs[item.question, item.paraphrase] for item in items]
    return SetMeasures(
        rouge=tuple(
            rouge_l_recall(item.answer, text) for item, text in zip(items, replies, strict=True)
        ),
        probability=tuple(min(1.0, math.exp(one)) for one in right),
        choice_probability=tuple(map(choice_probability, right, wrong)),
        truth_ratio=tuple(map(truth_ratio, paraphrased, wrong)),
    )


def retain_means(measures: SetMeasures) -> Means:
    """The three figures of the retain set: probability as it is, max(0, 1 - ratio)."""
    return _means(measures, measures.probability, truth_utility)


def choice_means(measures: SetMeasures) -> Means:
    """Those of real authors or world facts: probability among the choices, max(0, 1 - ratio)."""
    return _means(measures, measures.choice_probability, truth_utility)


def forget_means(measures: SetMeasures) -> Means:
    """Those of the forget set: probability as it is, min(ratio, 1 / ratio)."""
    return _means(measures, measures.probability, truth_neutrality)


def utility(retain: SetMeasures, real_authors: SetMeasures, world_facts: SetMeasures) -> Utility:
    """Model utility: the nine figures' harmonic mean, 0 if one of them is 0."""
    sets = retain_means(retain), choice_means(real_authors), choice_means(world_facts)
    nine = [figure for means in sets for figure in asdict(means).values()]
    return Utility(*sets, harmonic_mean(nine))


def forget_quality(unlearned_ratios: Sequence[float], retrained_ratios: Sequence[float]) -> float:
    """The p-value that both models' truth ratios on the forget set are of one distribution.

    Two-sample Kolmogorov-Smirnov test, two-sided: near 1 the unlearned model cannot be told from
    one trained without the forget set. Needs the extra `eval`. DataError where the
    models answered different numbers of questions, or none.
    """
    check_comparable(len(unlearned_ratios), retrained_ratios)
    stats = import_optional("scipy.stats")
    return float(stats.ks_2samp(unlearned_ratios, retrained_ratios).pvalue)


def check_comparable(count: int, retrained_ratios: Sequence[float]) -> None:
    """DataError where `count` truth ratios cannot be compared with those of a retrained model."""
    if count != len(retrained_ratios) or not count:
        raise DataError(
            f"the unlearned model has {count} truth ratios, the retrained one "
            f"{len(retrained_ratios)}: measure both on the same questions"
        )


def _ratio(log_ratio: float) -> float:
    return math.exp(max(-LARGEST_LOG_RATIO, min(LARGEST_LOG_RATIO, log_ratio)))


def _pairs(item: Item) -> Iterator[tuple[str, str]]:
    for text in (item.answer, item.paraphrase, *item.perturbed):
        yield item.question, text


def _means(
    measures: SetMeasures, probability: Sequence[float], truth: Callable[[float], float]
) -> Means:
    return Means(fmean(measures.rouge), fmean(probability), fmean(map(truth, measures.truth_ratio)))


def _text(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected a text under `{name}`")
    return value


def _perturbed(record: dict[str, Any], where: str) -> tuple[str, ...]:
    values = record.get("perturbed_answer")
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: expected a list of wrong answers under `perturbed_answer`")
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise DataError(f"{where}: expected nothing but texts in `perturbed_answer`")
    return tuple(values)
