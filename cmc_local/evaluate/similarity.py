"""How alike two models' logit shifts are: by cosine over shared tokens, and by transport.

    rows of one place in a text -+-> the tokens both have --> cosine
                                 `-> each one's top tokens --> edit distances --> sinkhorn distance

That fine-tuning shifts the logits of different models alike is the observation behind Cross-model
Control (Wu et al. 2024, arXiv 2410.17599). Knows vocabularies and arrays; where the
shifts come from (fine-tuned minus plain, or an adapter's own) is the caller's affair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import UsageError
from cmc_local.evaluate.optional_imports import import_optional
from cmc_local.text.vocabulary import Vocabulary

TOP: Final = 50
"""Tokens of each row that `transport` moves."""
REGULARISATION: Final = 0.05
"""Weight of the plan's entropy, in units of the ground cost, which lies in [0, 1]."""
TOLERANCE: Final = 1e-4
"""How much mass (of 1) may be out of place when the iteration ends."""
MAX_ROUNDS: Final = 20_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Shifts:
    """How far one model's logits moved, at the same places of a text as the other models'."""

    vocabulary: Vocabulary
    rows: NDArray[np.float32]
    """(P, V) float32, one row a place."""


@dataclass(frozen=True, eq=False, slots=True)
class TopTokens:
    """The TOP tokens that a shift raises most, weighted by the softmax of the shift over them.

    A softmax stays the same when a constant is added, as a shift's meaning does.
    """

    texts: list[bytes]
    masses: Floats
    """(TOP,) float64, or fewer where the vocabulary is smaller; they sum to 1."""


def similarities(models: Mapping[str, Shifts]) -> dict[str, Any]:
    """Each model against each, as the report page takes it; every figure is a mean over places.

    `{"models": [names], "cosine": [[...]], "sinkhorn": [[...]]}`. UsageError where the rows are not
    of the same places, are not finite, or two models have fewer than two tokens in common.
    """
    _check(models)
    count = len(models)
    cosines, distances = np.zeros((count, count)), np.zeros((count, count))
    every = list(models.items())
    tops = [top_tokens(shifts) for shifts in models.values()]
    for i, (one_name, one) in enumerate(every):
        for j, (other_name, other) in enumerate(every[: i + 1]):
            ids, other_ids = shared_tokens(one.vocabulary, other.vocabulary)
            if len(ids) < 2:
                raise UsageError(
                    f"{one_name} and {other_name} have {len(ids)} tokens in common: "
                    "compare models whose vocabularies overlap"
                )
            rows = zip(one.rows[:, ids], other.rows[:, other_ids], strict=True)
            cosines[i, j] = cosines[j, i] = np.mean([cosine(a, b) for a, b in rows])
            both = zip(tops[i], tops[j], strict=True)
            distances[i, j] = distances[j, i] = np.mean([transport(a, b) for a, b in both])
    return {
        "models": list(models),
        "cosine": np.round(cosines, 4).tolist(),
        "sinkhorn": np.round(distances, 4).tolist(),
    }


def shared_tokens(one: Vocabulary, other: Vocabulary) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ids, in `one` and in `other`, of the texts that both have: two (n,) intp of one order.

    Texts are bytes; tokens without text are left out. Of several tokens with one text, the lowest
    id stands for it.
    """
    here, there = _by_text(one), _by_text(other)
    both = [text for text in here if text in there]
    ids, other_ids = (np.array([where[t] for t in both], dtype=np.intp) for where in (here, there))
    return ids, other_ids


def top_tokens(shifts: Shifts) -> list[TopTokens]:
    """Of each row, among the tokens that have a text."""
    tokens = shifts.vocabulary.tokens
    ids = np.array([i for i, text in enumerate(tokens) if text], dtype=np.intp)
    found = []
    for row in shifts.rows:
        best = ids[np.argsort(-row[ids], kind="stable")[:TOP]]
        values = row[best].astype(np.float64)
        weights = np.exp(values - values.max())
        found.append(TopTokens([tokens[i] for i in best], weights / weights.sum()))
    return found


def cosine(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Cosine of two shifts over the same n tokens, each (n,), after taking off their means.

    A shift means the same whatever constant is added to it, so a constant must not count as
    likeness. 0 where one of them moves nothing.

    >>> round(cosine(np.array([1.0, 2.0, 3.0]), np.array([7.0, 8.0, 9.0])), 12)
    1.0
    """
    one, other = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 0 else 0.0


def transport(a: TopTokens, b: TopTokens) -> float:
    """The Sinkhorn distance, in [0, 1], of two shifts' top tokens.

    Moving mass from one token to another costs their texts' edit distance over the longer one's
    length, so vocabularies need not share a token, and "Par" is nearer to "Paris" than to "the".
    (Transport between the sorted values, the other way to do without shared tokens, would call
    shifts alike that raise unlike tokens.)
    """
    return sinkhorn(a.masses, b.masses, edit_distances(a.texts, b.texts), REGULARISATION)


def sinkhorn(p: Floats, q: Floats, cost: Floats, regularisation: float) -> float:
    """The cost <P, C> of the entropic transport plan from p (n,) to q (m,) over costs (n, m).

    P minimises <P, C> - regularisation * H(P) among plans with marginals p and q: the dual-Sinkhorn
    divergence of Cuturi 2013 (arXiv 1306.0895, algorithm 1; his lambda is
    1 / regularisation), in logarithms, so that a small regularisation does not underflow. p and q
    each sum to 1. The distance of p to itself is above 0: the entropy blurs the plan.

    UsageError where the marginals are not met within TOLERANCE after MAX_ROUNDS.

    >>> half = np.array([0.5, 0.5])
    >>> round(sinkhorn(half, half, 1 - np.eye(2), 1 / np.log(3)), 9)  # 1 / (1 + exp(ln 3))
    0.25
    """
    p, q, cost = p[p > 0], q[q > 0], cost[np.ix_(p > 0, q > 0)]
    logsumexp = import_optional("scipy.special").logsumexp
    scores = -cost / regularisation
    rows, columns = np.zeros(len(p)), np.zeros(len(q))
    for _ in range(MAX_ROUNDS):
        rows = np.log(p) - logsumexp(scores + columns, axis=1)
        columns = np.log(q) - logsumexp(scores + rows[:, None], axis=0)
        plan = np.exp(scores + rows[:, None] + columns)
        # The columns are right after each round, by construction.
        if np.abs(plan.sum(axis=1) - p).sum() <= TOLERANCE:
            return float((plan * cost).sum())
    raise UsageError(
        f"the transport plan did not settle in {MAX_ROUNDS} rounds: "
        f"use a regularisation above {regularisation}"
    )


def edit_distances(some: Sequence[bytes], others: Sequence[bytes]) -> Floats:
    """(n, m) float64: Levenshtein distance over the longer text's length, 0 for equal texts.

    In characters where all texts are UTF-8, otherwise in bytes. Needs the extra `eval`.

    >>> edit_distances([b"Par", b"the"], [b"Paris"])
    array([[0.4],
           [1. ]])
    """
    levenshtein = import_optional("rapidfuzz.distance.Levenshtein")
    spelled: list[Sequence[bytes] | Sequence[str]] = [some, others]
    with contextlib.suppress(UnicodeDecodeError):
        spelled = [[text.decode() for text in texts] for texts in (some, others)]
    table: Floats = import_optional("rapidfuzz.process").cdist(
        *spelled, scorer=levenshtein.normalized_distance, dtype=np.float64
    )
    return table


def _check(models: Mapping[str, Shifts]) -> None:
    places = {len(shifts.rows) for shifts in models.values()}
    if len(places) != 1 or 0 in places:
        raise UsageError(
            f"the shifts are of {sorted(places)} places: give rows of the same places, at least one"
        )
    for name, shifts in models.items():
        if shifts.rows.ndim != 2 or shifts.rows.shape[1] != len(shifts.vocabulary):
            raise UsageError(
                f"{name}: shifts of shape {shifts.rows.shape} do not fit "
                f"{len(shifts.vocabulary)} tokens: give (places, tokens)"
            )
        if not np.isfinite(shifts.rows).all():
            raise UsageError(f"{name}: a shift is not finite: leave that place out")


def _by_text(vocabulary: Vocabulary) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for i, text in enumerate(vocabulary.tokens):
        if text:
            found.setdefault(text, i)
    return found
