"""Trials on the small world: other ways to train `instruct`, each measured on all base models.

    python -m cmc_export.world trials NAME ... [--seeds 5,6,7] [--part validation|test]

A trial is the recipe of `instruct` with some settings changed. Each result is one line of
runs/trials/results.jsonl; a trial whose line is there is passed over. What they showed stands in
export/README.md's log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmc_export import adapter_export, training
from cmc_export.adapter_export import Choices
from cmc_export.recipe import TrainRecipe, build_recipe
from cmc_local.base.quantize import quantize
from cmc_local.evaluate.world import Question, answers, rates, read_questions
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

RUNS, MODELS, RECIPES = Path("runs"), Path("models"), Path("export/recipes")
BASES = ("template", "larger", "other")
LIMITS = Limits(context=256, parallel=4)
Say = Callable[[str], None]

_OWN = "runs/world/sentencepiece/tokenizer.json"
TRIALS: Mapping[str, Mapping[str, Any]] = {
    "folder": {},
    "gguf": {"template": ["models/template.gguf"]},
    "gguf-q8": {"template": ["runs/trials/template-Q8_0.gguf"]},
    "beside-other": {"template": ["models/other.gguf"], "tokenizer": _OWN},
    "beside-both": {"template": ["models/template.gguf", "models/other.gguf"], "tokenizer": _OWN},
    "beside-both-320": {
        "template": ["models/template.gguf", "models/other.gguf"],
        "tokenizer": _OWN,
        "steps": 320,
        "evaluate_every": 40,
    },
    "dropout": {"dropout": 0.1},
    "plain-kl": {"plain": ["runs/world/strangers.txt"], "plain_weight": 0.3},
    "by-author": {"valid": [], "valid_share": 0.1, "entity": "author"},
    "no-pretraining": {"init": None, "width": 128, "layers": 3, "heads": 4, "mlp": 344},
}


def run_trials(names: Sequence[str], seeds: Sequence[int], part: str, say: Say) -> None:
    """Train and measure each trial with each seed."""
    folder = RUNS / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    for base in BASES:
        if not (folder / f"{base}-Q8_0.gguf").is_file():
            quantize(MODELS / f"{base}.gguf", folder / f"{base}-Q8_0.gguf", "Q8_0", threads=1)
    questions = _questions(part)
    results = folder / "results.jsonl"
    known = results.read_text("utf-8").splitlines() if results.is_file() else []
    done = {(r["trial"], r["seed"], r["part"]) for r in map(json.loads, known)}
    for name in names:
        for seed in seeds:
            if (name, seed, part) in done:
                continue
            row = _measure(name, seed, questions, part, say)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            say(json.dumps(row))


def _questions(part: str) -> list[Question]:
    found = read_questions(MODELS / "world/questions.jsonl")
    return [q for q in found if q.part == part and not q.forgotten]


def _measure(
    name: str, seed: int, questions: Sequence[Question], part: str, say: Say
) -> dict[str, Any]:
    adapter = trained(RUNS / f"trials/{name}-{seed}", "instruct", seed, TRIALS[name], say)
    exact, fact = {}, {}
    for base in BASES:
        for path in (MODELS / f"{base}.gguf", RUNS / f"trials/{base}-Q8_0.gguf"):
            with SteeredModel.load(path, [adapter], limits=LIMITS) as model:
                found = rates(questions, answers(model, questions, None))
            exact[path.stem], fact[path.stem] = round(found.exact, 4), round(found.fact, 4)
    return {"trial": name, "seed": seed, "part": part, "exact": exact, "fact": fact}


def trained(place: Path, name: str, seed: int, changes: Mapping[str, Any], say: Say) -> Path:
    """The adapter of recipes/NAME.toml with `changes`, trained at `place` if it is not there."""
    adapter = place.with_name(place.name + ".adapter")
    if not adapter.is_dir():
        say(f"training {place}")
        flags = {"seed": seed, "output": place, "resume": True}
        recipe = build_recipe(TrainRecipe, "train", RECIPES / f"{name}.toml", flags, changes)
        training.train(recipe)
        choices = Choices(alpha=1.0, name=name, precisions=("fp32",))
        adapter_export.export(recipe.output, adapter, choices)
    return adapter
