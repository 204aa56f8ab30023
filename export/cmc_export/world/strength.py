"""Chooses an adapter's alpha on the validation authors, over the three base models, greedy.

`instruct` takes the strength with the most exact answers. `forget` takes the one with the best
worse half: facts of the forgotten authors missed, answers about the others still exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cmc_local.evaluate.world import Question, answers, rates, read_questions
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

MODELS = Path("models")
BASES = ("template", "larger", "other")
ALPHAS: Mapping[str, tuple[float, ...]] = {
    "instruct": (0.6, 0.8, 1.0, 1.2),
    "forget": (0.7, 0.8, 0.9, 1.0),
}
LIMITS = Limits(context=256, parallel=4)
MOST = 300
"""Questions of each kind; validation is small."""


def choose(name: str, trial: Path, say: Callable[[str], None]) -> float:
    """The alpha with the highest mean score over the base models; 1 wins a tie."""
    questions = read_questions(MODELS / "world/questions.jsonl")
    kept = [q for q in questions if q.part == "validation" and not q.forgotten][:MOST]
    away = [q for q in questions if q.forgotten][:MOST]
    scores = dict.fromkeys(ALPHAS[name], 0.0)
    for base in BASES:
        with _load(name, base, trial) as model:
            for alpha in scores:
                score = _score(name, model, kept, away, alpha)
                say(f"{name} on {base}, alpha {alpha}: {score:.3f}")
                scores[alpha] += score / len(BASES)
    return max(scores, key=lambda alpha: (round(scores[alpha], 4), -abs(alpha - 1.0)))


def _load(name: str, base: str, trial: Path) -> SteeredModel:
    before = [] if name == "instruct" else [MODELS / "instruct"]
    return SteeredModel.load(MODELS / f"{base}.gguf", [*before, (trial, 1.0)], limits=LIMITS)


def _score(
    name: str, model: SteeredModel, kept: list[Question], away: list[Question], alpha: float
) -> float:
    """In [0, 1]."""
    alphas = {**model.alphas, name: alpha}
    exact = rates(kept, answers(model, kept, alphas)).exact
    if name == "instruct":
        return exact
    return min(exact, 1.0 - rates(away, answers(model, away, alphas)).fact)
