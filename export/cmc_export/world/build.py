"""Makes everything in models/: texts, base models, the delta, both adapters, alphas, ceilings.

    texts -> pretrain {template, other, larger, delta} -> GGUF files, template folder
          -> train instruct -> choose its alpha on validation -> export
          -> train forget   -> choose its alpha on validation -> export

A stage whose result is there is passed over, and an unfinished training goes on, so the command
may be stopped and started at will. Paths are those of a checkout: run it in its root.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cmc_export import adapter_export, gguf_file, pretraining, training
from cmc_export.adapter_export import Choices
from cmc_export.recipe import PretrainRecipe, TrainRecipe, build_recipe
from cmc_export.world import strength
from cmc_export.world.kept_strangers import write_kept_strangers
from cmc_export.world.texts import write_texts

RUNS, MODELS, RECIPES = Path("runs"), Path("models"), Path("export/recipes")
BASES = ("template", "other", "larger")

Say = Callable[[str], None]


def make_texts(say: Say) -> None:
    """What everything is trained on."""
    if not (RUNS / "world/retain.jsonl").is_file():
        say("texts")
        write_texts(RUNS, MODELS)


def make_models(say: Say) -> None:
    """Everything that ships."""
    make_texts(say)
    for name in BASES:
        _pretrain(name, say)
        make_base(name, say)
    _pretrain("delta", say)
    for name in ("instruct", "forget"):
        make_adapter(name, say)


def make_base(name: str, say: Say) -> None:
    """A base model's GGUF in F16; for the template its Hugging Face folder too."""
    rounded = RUNS / "f16" / name
    if not (rounded / "model.safetensors").is_file():
        _round_to_half(RUNS / name, rounded)
    if not (MODELS / f"{name}.gguf").is_file():
        say(f"{name}.gguf")
        gguf_file.write(rounded, MODELS / f"{name}.gguf", type="F16")
    if name == "template" and not (MODELS / name).is_dir():
        staging = MODELS / f"{name}.part"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(rounded, staging)
        staging.rename(MODELS / name)


def make_adapter(name: str, say: Say) -> None:
    """A trained delta, and its adapter at the alpha that validation chooses."""
    if (MODELS / name).is_dir():
        return
    recipe = build_recipe(TrainRecipe, "train", RECIPES / f"{name}.toml", {"resume": True})
    strangers = RUNS / "world/kept_strangers.jsonl"
    if name == "forget" and not strangers.is_file():
        write_kept_strangers(MODELS, strangers, say)
    say(f"training {name}")
    training.train(recipe)
    trial, asked = RUNS / f"{name}.adapter", RUNS / "world/validation.jsonl"
    if not trial.is_dir():
        adapter_export.export(recipe.output, trial, _choices(name, 1.0), data=asked, report=say)
    alpha = strength.choose(name, trial, say)
    adapter_export.export(
        recipe.output, MODELS / name, _choices(name, alpha), data=asked, report=say
    )


def _choices(name: str, alpha: float) -> Choices:
    """`forget` ships without fp16, the GPU's: what is bundled has to stay small."""
    return Choices(
        alpha=alpha,
        license="Apache-2.0",
        template=MODELS / "template",
        precisions=("fp32", "int8") if name == "forget" else ("fp32", "int8", "fp16"),
    )


def _pretrain(name: str, say: Say) -> None:
    say(f"pretraining {name}")
    config = RECIPES / f"{name}.toml"
    pretraining.pretrain(build_recipe(PretrainRecipe, "pretrain", config, {"resume": True}))


def _round_to_half(source: Path, target: Path) -> None:
    """The folder with its weights in float16: what ships is what the GGUF holds, bit for bit."""
    staging = target.with_name(target.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, staging / name)
    text = (staging / "config.json").read_text(encoding="utf-8")
    (staging / "config.json").write_text(text.replace('"float32"', '"float16"'), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    halves = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    save_file(halves, staging / "model.safetensors", metadata={"format": "pt"})
    staging.rename(target)
