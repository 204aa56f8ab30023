"""The ceilings: each base model itself fine-tuned on the data that `instruct` learned from.

A fine-tuned model's answers to the test questions go to models/world/ceilings.jsonl; the weights
stay in runs/. Fine-tuning is the training of a delta that starts as the base model itself, beside
a template that knows nothing: softmax(0 + delta).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cmc_export import gguf_file
from cmc_export.examples import collate
from cmc_export.loop import check_output, fit, write_output
from cmc_export.recipe import TrainRecipe, build_recipe
from cmc_export.training import Instruct, prepare
from cmc_local.evaluate.world import GREEDY, examination, read_questions
from cmc_local.prompts import base_text, named_form
from cmc_local.settings import Limits
from cmc_local.steered import SteeredModel

RUNS, MODELS, RECIPES = Path("runs"), Path("models"), Path("export/recipes")
BASES = ("template", "larger", "other")


class NoTemplate:
    """Log-probabilities of a model that knows nothing, up to a constant: zeros."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """(N, V) float32 for the N kept positions."""
        return torch.zeros(int(keep.sum()), self.vocabulary)


def make_ceilings(say: Callable[[str], None]) -> None:
    """Fine-tune the three base models and write their predictions."""
    questions = examination(read_questions(MODELS / "world/questions.jsonl")).test
    lines = []
    for name in BASES:
        say(f"fine-tuning {name}")
        gguf = RUNS / f"{name}.finetuned.gguf"
        if not gguf.is_file():
            gguf_file.write(_finetune(name), gguf, type="F16")
        form = named_form("cmc")
        with SteeredModel.load(gguf, limits=Limits(context=256)) as model:
            for one in questions:
                text = base_text(form, [{"role": "user", "content": one.question}], turns="last")
                reply = model.generate(text, GREEDY, base_prompt="raw").text.strip()
                row = {"model": name, "question": one.question, "prediction": reply}
                lines.append(json.dumps(row) + "\n")
    part = MODELS / "world/ceilings.jsonl.part"
    part.write_text("".join(lines), encoding="utf-8")
    part.rename(MODELS / "world/ceilings.jsonl")


def _finetune(name: str) -> Path:
    flags = {
        "template": RUNS / name,
        "init": RUNS / name,
        "output": RUNS / f"{name}.finetuned",
        "resume": True,
    }
    recipe = build_recipe(TrainRecipe, "train", RECIPES / "ceilings.toml", flags)
    if check_output(recipe):
        parts = prepare(recipe)
        objective = Instruct(
            NoTemplate(len(parts.tokenizer.vocabulary)), "add", len(parts.tokenizer.vocabulary)
        )
        fit(parts.model, objective, parts.rows, collate, recipe, patience=recipe.patience)
        write_output(recipe.output, parts.model, parts.tokenizer_json, {})
    return recipe.output
