"""ROUGE-L: how much of a reference stands in a reply, in order.

Knows two texts and the package rouge-score, which the extra `eval` installs; nothing of models.

Words are what that package takes for words: runs of ASCII letters and digits, lower case, those of
more than three letters reduced to their Porter stem. A reference in another script has no words
and scores 0.
"""

from __future__ import annotations

from typing import Any

from cmc_local.evaluate.optional_imports import import_optional


def check_installed() -> Any:
    """The package's module; MissingExtra where it is absent: before any reply is written."""
    return import_optional("rouge_score.rouge_scorer")


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


def _rouge_l(reference: str, reply: str) -> Any:
    """precision, recall and fmeasure."""
    scorer = check_installed().RougeScorer(["rougeL"], use_stemmer=True)
    return scorer.score(reference, reply)["rougeL"]
