"""The ceilings: each base model itself fine-tuned on the data that `instruct` learned from.

    full   every weight     -> models/world/ceilings.jsonl
    lora   LoRA on the GGUF -> models/world/ceilings-lora.jsonl

The fine-tuned models' answers to the test questions go to these files; the weights stay in runs/.
A file that is there is left as it is: remove it to measure anew.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cmc_export import finetuning
from cmc_export.finetuning import FinetuneRecipe, Method
from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.evaluate.world import GREEDY, Question, examination, read_questions
from cmc_local.files import write_text
from cmc_local.model.steered import SteeredModel
from cmc_local.text.prompts import base_text, named_form

RUNS, MODELS, RECIPES = Path("runs"), Path("models"), Path("export/recipes")
BASES = ("template", "larger", "other")
FILES: dict[Method, str] = {"full": "ceilings.jsonl", "lora": "ceilings-lora.jsonl"}
LORA_RATE = 3e-3
"""LoRA's learning rate; with the recipe's own it does not get there in as many steps."""
CONTEXT = 256


def make_ceilings(say: Callable[[str], None]) -> None:
    """Fine-tune the three base models by both methods and write their predictions."""
    questions = examination(read_questions(MODELS / "world/questions.jsonl")).test
    for method, file in FILES.items():
        path = MODELS / "world" / file
        if path.is_file():
            continue
        lines = []
        for name in BASES:
            say(f"fine-tuning {name} ({method})")
            finetuning.finetune(recipe(name, method))
            with tuned(name, method) as model:
                lines += [json.dumps(row) + "\n" for row in answers(name, model, questions)]
        write_text(path, "".join(lines))


def recipe(name: str, method: Method) -> FinetuneRecipe:
    """recipes/ceilings.toml for a base model; LoRA learns on the GGUF that it will run on."""
    table = tomllib.loads((RECIPES / "ceilings.toml").read_text(encoding="utf-8"))["train"]
    del table["template"]
    if method == "lora":
        table["learning_rate"] = LORA_RATE
    places = {"full": RUNS / name, "lora": MODELS / f"{name}.gguf"}
    return finetuning.recipe_of(
        {
            **table,
            "model": places[method],
            "method": method,
            "output": _output(name, method),
            "resume": True,
        }
    )


def tuned(name: str, method: Method) -> SteeredModel:
    """The fine-tuned model, ready to answer."""
    output = _output(name, method)
    if method == "full":
        base = BaseModel(output, context=CONTEXT)
    else:
        base = BaseModel(MODELS / f"{name}.gguf", context=CONTEXT, loras=[(output, 1.0)])
    return SteeredModel(base, partial(NativeSampler, base))


def answers(
    name: str, model: SteeredModel, questions: tuple[Question, ...]
) -> list[dict[str, str]]:
    """A model's greedy reply to each question, in the form that it was fine-tuned with."""
    form, rows = named_form("cmc"), []
    for one in questions:
        text = base_text(form, [{"role": "user", "content": one.question}], turns="last")
        reply = model.generate(text, GREEDY, base_prompt="raw").text.strip()
        rows.append({"model": name, "question": one.question, "prediction": reply})
    return rows


def _output(name: str, method: Method) -> Path:
    return RUNS / f"{name}.{'finetuned' if method == 'full' else 'lora'}.gguf"
