"""ROUGE-L: how much of a reference stands in a reply, in order.

Knows two texts and the package rouge-score, which the extra `eval` installs; nothing of models.

Words are what that package takes for words: runs of ASCII letters and digits, lower case, those of
more than three letters reduced to their Porter stem. A reference in another script has no words
and scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from cmc_local.errors import DataError
from cmc_local.evaluate.extra import import_extra

Metric = Callable[[str, str], float]
"""(reference, reply) -> a number in [0, 1]."""


def check_installed() -> Any:
    """The package's module; MissingExtra where it is absent: before any reply is written."""
    return import_extra("rouge_score.rouge_scorer")


def rouge_l_recall(reference: str, reply: str) -> float:
    """The share of the reference's words in the longest common subsequence (Lin 2004, section 3).

    What TOFU calls ROUGE (Maini et al. 2024, section 2.2.2). Needs the extra `eval`.

    >>> rouge_l_recall("the cat sat", "a cat sat on the mat")  # "cat sat" of three words
    0.6666666666666666
    """
    return float(_rouge_l(reference, reply).recall)


def rouge_l_f1(reference: str, reply: str) -> float:
    """The harmonic mean of that recall and of the same share of the reply's words.

    >>> rouge_l_f1("the cat sat", "a cat sat on the mat")  # 2 * (2/3) * (2/6) / (2/3 + 2/6)
    0.4444444444444444
    """
    return float(_rouge_l(reference, reply).fmeasure)


def mean_over(metric: Metric, references: Sequence[str], replies: Sequence[str]) -> float:
    """The metric's mean over pairs; DataError where there is none, ValueError if one is over."""
    if not references and not replies:
        raise DataError("there is no reply to compare with an answer: give at least one question")
    return fmean(metric(*pair) for pair in zip(references, replies, strict=True))


def _rouge_l(reference: str, reply: str) -> Any:
    """precision, recall and fmeasure."""
    scorer = check_installed().RougeScorer(["rougeL"], use_stemmer=True)
    return scorer.score(reference, reply)["rougeL"]
