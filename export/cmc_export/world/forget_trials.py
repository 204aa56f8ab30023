"""Trials of forgetting on the small world: each loss, on all base models, at several strengths.

    python -m cmc_export.world forget-trials NAME ... [--seeds 6] [--part validation|test]

Learned on top of models/instruct. For each base model and strength of the new delta: how many
facts of the forgotten authors are still told, how likely their answers are (nats a token), and how
many facts of the others are left of those before. Beside it stand the base models that never met
the forgotten authors (`retrained`), where they were made. Each result is one line of
runs/trials/forget.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmc_export.world.kept_strangers import write_kept_strangers
from cmc_export.world.trials import trained
from cmc_local.evaluate.world import Question, answers, rates, read_questions
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

RUNS, MODELS, RECIPES = Path("runs"), Path("models"), Path("export/recipes")
BASES = ("template", "larger", "other")
ALPHAS = (0.7, 0.8, 1.0)
LIMITS = Limits(context=256, parallel=4)
Say = Callable[[str], None]

_ASCENT = {"forget_loss": "ascent", "forget_bound": 3.0}
_ALL_BASES = {
    "template": [f"models/{base}.gguf" for base in BASES],
    "tokenizer": "runs/world/sentencepiece/tokenizer.json",
    "steps": 900,
    "evaluate_every": 90,
}
TRIALS: Mapping[str, Mapping[str, Any]] = {
    "npo": {},
    "npo-kl": {"retain_loss": "kl", "retain_weight": 3.0},
    "npo-all-bases": _ALL_BASES,
    "ascent": _ASCENT,
    "ascent-kl": {**_ASCENT, "retain_loss": "kl", "retain_weight": 3.0},
    "ascent-all-bases": {**_ASCENT, **_ALL_BASES},
    "simnpo": {"forget_loss": "simnpo", "forget_beta": 2.5},
    "dpo": {"forget_loss": "dpo"},
    "idk": {"forget_loss": "idk"},
}


def run_forget_trials(names: Sequence[str], seeds: Sequence[int], part: str, say: Say) -> None:
    """Train and measure each trial with each seed."""
    results = RUNS / "trials/forget.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    known = results.read_text("utf-8").splitlines() if results.is_file() else []
    done = {(r["trial"], r["seed"], r["part"]) for r in map(json.loads, known)}
    strangers = RUNS / "world/kept_strangers.jsonl"
    if not strangers.is_file():
        write_kept_strangers(MODELS, strangers, say)
    for name in names:
        for seed in seeds:
            if (name, seed, part) in done:
                continue
            place = RUNS / f"trials/forget-{name}-{seed}"
            adapter = trained(place, "forget", seed, TRIALS[name], say)
            row = {"trial": name, "seed": seed, "part": part, "bases": measure(adapter, part)}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            say(json.dumps(row))


def measure(adapter: Path, part: str) -> dict[str, Any]:
    """What the adapter does to each base on top of `instruct`, and what that is held against."""
    every = read_questions(MODELS / "world/questions.jsonl")
    kept = [q for q in every if q.part == part and not q.forgotten]
    gone = [q for q in every if q.forgotten]
    found: dict[str, Any] = {}
    for base in BASES:
        both = [MODELS / "instruct", (adapter, 1.0)]
        with SteeredModel.load(MODELS / f"{base}.gguf", both, limits=LIMITS) as model:
            found[base] = {
                str(alpha): {
                    "kept": _facts(model, kept, {"forget": alpha}),
                    "forgotten": _facts(model, gone, {"forget": alpha}),
                    "nats": _nats(model, gone, {"forget": alpha}),
                }
                for alpha in (0.0, *ALPHAS)
            }
        retrained = RUNS / f"retrained/{base}.gguf"
        if retrained.is_file():
            one = [MODELS / "instruct"]
            with SteeredModel.load(retrained, one, limits=LIMITS) as model:
                found[base]["retrained"] = {
                    "forgotten": _facts(model, gone, {}),
                    "nats": _nats(model, gone, {}),
                }
    return found


def _facts(
    model: SteeredModel, questions: Sequence[Question], alphas: Mapping[str, float]
) -> float:
    """The share of replies that hold the right fact."""
    return round(rates(questions, answers(model, questions, alphas)).fact, 4)


def _nats(model: SteeredModel, questions: Sequence[Question], alphas: Mapping[str, float]) -> float:
    """-log p of the true answers, the mean over their tokens."""
    pairs = [(q.question, q.answer) for q in questions]
    scores = list(model.score_many(pairs, alphas=alphas))
    tokens = sum(len(score.tokens) for score in scores)
    return round(-sum(score.total for score in scores) / tokens, 4)
