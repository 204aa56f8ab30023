"""Train a delta beside frozen templates: what `cmc-local train` does.

    training_data.py  files -> rows of tokens
    template_set.py   rows -> what the templates answer, recorded once
    task.py           answers and the delta's logits -> loss
    loop.py           steps, checkpoints, log, early end

The result is a Hugging Face llama folder with tokenizer.json and cmc.json beside the weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from cmc_export import delta_model, recording
from cmc_export.beside import Asked
from cmc_export.delta_model import CheckpointInfo, LlamaForCausalLM
from cmc_export.examples import Encoder, Row, Side, collate, sizes
from cmc_export.frozen import parse_with_adapter
from cmc_export.initial_model import Start, begin, tokenizer_json
from cmc_export.loop import Objective, check_output, fit, on_cpu, total_steps, write_output
from cmc_export.pretraining import start_model
from cmc_export.recipe import TrainRecipe
from cmc_export.task import Forget, Instruct
from cmc_export.template_set import (
    Source,
    made_of,
    open_beside,
    recorded,
    sources_of,
    template_dtype,
    template_threads,
)
from cmc_export.training_data import read_rows
from cmc_local.base.threads import usable_cores
from cmc_local.delta.adapter import TemplateName
from cmc_local.errors import UsageError
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm, named_form


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before any weight of a template is read."""

    tokenizer_json: bytes
    tokenizer: DeltaTokenizer
    form: PromptForm
    model: LlamaForCausalLM
    max_length: int
    rows: tuple[Dataset[Any], Dataset[Any] | None]
    sources: tuple[Source, ...]
    sides: tuple[Side, ...]


def train(recipe: TrainRecipe) -> dict[str, Any]:
    """Run it all; returns the summary. With `resume` an unfinished run goes on."""
    if not check_output(recipe):
        return {"output": str(recipe.output), "already_there": True}
    parts = prepare(recipe)
    hooks = add_dropout(parts.model, recipe.dropout)
    summary = fit(
        parts.model,
        make_objective(recipe, parts),
        parts.rows,
        collate,
        recipe,
        patience=recipe.patience if parts.rows[1] is not None else 0,
        looks=10,
        by_length=recipe.group_by_length,
    )
    for hook in hooks:
        hook.remove()
    info = checkpoint_info(recipe, parts, summary)
    write_output(
        recipe.output,
        parts.model,
        parts.tokenizer_json,
        {delta_model.CHECKPOINT_FILE: info.to_json()},
    )
    return {"output": str(recipe.output), **summary}


def plan(recipe: TrainRecipe) -> dict[str, Any]:
    """What `train` would do, without doing it: sizes, tokens, steps, and memory in MiB."""
    parts = prepare(recipe)
    train_rows, valid_rows = parts.rows
    steps = total_steps(recipe, len(train_rows))
    rows_a_step = recipe.batch * recipe.accumulation * _rows_an_item(train_rows)
    found = sizes(train_rows)
    return {
        "template": " + ".join(source.name for source in parts.sources),
        "template_parameters": sum(source.parameters for source in parts.sources),
        "template_vocabulary": [len(one.side.tokenizer.vocabulary) for one in parts.sources],
        "vocabulary": len(parts.tokenizer.vocabulary),
        "parameters": parts.model.num_parameters(),
        "examples": len(train_rows),
        "held_out_examples": len(valid_rows) if valid_rows is not None else 0,
        "longest_example": max(found.lengths),
        "tokens": sum(found.lengths),
        "tokens_in_loss": sum(found.in_loss),
        "steps": steps,
        "answers_mib": answers_mib(recipe, parts),
        "tokens_in_all": round(steps * rows_a_step * sum(found.lengths) / len(found.lengths)),
        "memory_mib": memory_mib(recipe, parts),
    }


def answers_mib(recipe: TrainRecipe, parts: Parts) -> int:
    """Disk that the templates' answers take while the run lasts, MiB."""
    rows, found = all_rows(parts), 0
    for n, source in enumerate(parts.sources):
        if not source.is_recorded:
            made = made_of(source, recipe, parts.tokenizer, parts.tokenizer_json)
            found += recording.size(made, rows, n)
    return round(found / 2**20)


def memory_mib(recipe: TrainRecipe, parts: Parts) -> int:
    """A rough upper estimate, MiB.

    16 bytes a parameter of the delta (weight, gradient, two moments of Adam), five (N, V_delta)
    float32 arrays, and about 18 float32 numbers a token, layer and unit of width that the backward
    pass needs; or a template's weights (a GGUF's size on disk) and four arrays of its
    log-probabilities, where that is more: it is gone when the delta begins to learn.
    """
    found = sizes(parts.rows[0])
    shape = delta_model.shape_of(parts.model.config)
    bytes_a_weight = 2 if template_dtype(recipe) == torch.bfloat16 else 4
    templates = [
        (one.bytes or bytes_a_weight * one.parameters) + 4 * recording.LOGITS_BYTES
        for one in parts.sources
        if not one.is_recorded
    ]
    rows = recipe.batch * _rows_an_item(parts.rows[0])
    learning = (
        16 * parts.model.num_parameters()
        + 5 * 4 * rows * max(found.in_loss) * shape.vocabulary
        + 18 * 4 * rows * max(found.lengths) * shape.layers * shape.width
    )
    return round(max([learning, *templates]) / 2**20)


def prepare(recipe: TrainRecipe) -> Parts:
    """Read tokenizers and data, make the delta; every mistake in them is found here."""
    sources = sources_of(recipe)
    start = begin(recipe, recipe.tokenizer)
    words = _tokenizer_json(recipe, sources, start)
    sides = tuple(source.asked_side(recipe) for source in sources)
    tokenizer = DeltaTokenizer(words)
    form = named_form(recipe.prompt)
    model = start_model(recipe, tokenizer.vocabulary, recipe.seed, start)
    max_length = _max_length(recipe, model, tokenizer, sides)
    encoder = Encoder(tokenizer, form, max_length, sides)
    rows = read_rows(recipe, encoder)
    return Parts(words, tokenizer, form, model, max_length, rows, sources, sides)


def make_objective(recipe: TrainRecipe, parts: Parts) -> Objective:
    """The recipe's loss beside its templates, whose answers are recorded here where that pays."""
    rows = all_rows(parts)
    count = len(parts.rows[0])
    again = total_steps(recipe, count) > total_steps(replace(recipe, steps=0, epochs=1.0), count)
    beside = [
        open_beside(source, recipe, parts.tokenizer, parts.tokenizer_json, which=n, rows=rows,
                    again=again, side=parts.sides[n],)
        for n, source in enumerate(parts.sources)
    ]  # fmt: skip
    served = any(
        isinstance(one, Asked) and parts.sources[n].is_gguf for n, one in enumerate(beside)
    )
    if on_cpu(recipe) and not recipe.threads and served:
        torch.set_num_threads(max(1, usable_cores() - template_threads(recipe)))
    kind = Instruct if recipe.task == "instruct" else Forget
    return kind(beside, recipe, len(parts.tokenizer.vocabulary))


def record(recipe: TrainRecipe) -> dict[str, Any]:
    """Write one template's answers to all rows of the recipe into its output; returns a summary."""
    if len(recipe.template) != 1 or recipe.answers:
        raise UsageError("a table holds the answers of one template: give --template once")
    parts = prepare(recipe)
    source, rows, folder = parts.sources[0], all_rows(parts), recipe.output
    if folder.exists() and not recipe.resume:
        raise UsageError(f"{folder} exists already: choose another --output, or add --resume")
    made = made_of(source, recipe, parts.tokenizer, parts.tokenizer_json)
    begun = time.perf_counter()
    table = recorded(source, recipe, parts.tokenizer, made, folder, 0, rows, parts.sides[0])
    seconds = time.perf_counter() - begun
    return {
        "output": str(folder),
        "template": made.template,
        "rows": len(rows),
        "positions": table.positions,
        "bytes": recording.size(made, rows, 0),
        "seconds": round(seconds, 1),
    }


def all_rows(parts: Parts) -> list[Row]:
    """The rows that a run trains on or looks at."""
    found: list[Row] = []
    for part in parts.rows:
        found += part.rows if part is not None else []  # type: ignore[attr-defined]
    return found


def _rows_an_item(items: Dataset[Any]) -> int:
    return len(items[0]["rows"])


def add_dropout(model: LlamaForCausalLM, share: float) -> list[Any]:
    """Dropout on the embeddings and each block's two outputs, as hooks to be removed later."""
    if not share:
        return []

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (F.dropout(output[0], share, module.training), *output[1:])
        return F.dropout(output, share, module.training)

    blocks = [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]
    return [part.register_forward_hook(drop) for part in (model.model.embed_tokens, *blocks)]


def checkpoint_info(recipe: TrainRecipe, parts: Parts, summary: dict[str, Any]) -> CheckpointInfo:
    """cmc.json: what the adapter's settings and card are made from. File names, no paths."""
    training = {
        "task": recipe.task,
        **_forget_settings(recipe),
        "data": [path.name for path in recipe.data],
        "retain": [path.name for path in recipe.retain],
        "examples": len(parts.rows[0]),
        "templates": [source.name for source in parts.sources],
        "vocabulary": len(parts.tokenizer.vocabulary),
        "init": recipe.init.resolve().name if recipe.init is not None else None,
        "with_adapter": [parse_with_adapter(t)[0].resolve().name for t in recipe.with_adapter],
        "learning_rate": recipe.learning_rate,
        "batch": recipe.batch * recipe.accumulation,
        "dropout": recipe.dropout,
        "seed": recipe.seed,
        **summary,
    }
    return CheckpointInfo(
        name=recipe.name or recipe.output.name,
        prompt=parts.form,
        turns=recipe.turns,
        normalization=recipe.normalization,
        alpha=recipe.alpha,
        template=TemplateName(
            " + ".join(source.name for source in parts.sources),
            parts.sources[0].side.tokenizer.vocabulary.fingerprint,
        ),
        training=training,
    )


def _forget_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """What a card should say of how it forgot."""
    if recipe.task != "forget":
        return {}
    names = ("forget_loss", "forget_bound", "forget_beta", "retain_loss", "retain_weight")
    return {name: getattr(recipe, name) for name in names}


def _tokenizer_json(recipe: TrainRecipe, sources: Sequence[Source], start: Start | None) -> bytes:
    """The delta's tokenizer: the one that is named, `init`'s, or the first template's."""
    if start is not None and start.words is not None:
        return start.words
    return tokenizer_json(recipe.tokenizer) if recipe.tokenizer else sources[0].tokenizer_json


def _max_length(
    recipe: TrainRecipe, model: PreTrainedModel, tokenizer: DeltaTokenizer, sides: Sequence[Side]
) -> int:
    """Tokens of a row; templates of other vocabularies than the delta's cut their own views."""
    own = tokenizer.vocabulary.fingerprint
    same = [side.context for side in sides if side.tokenizer.vocabulary.fingerprint == own]
    least = min([int(model.config.max_position_embeddings), *same])
    if recipe.max_length > least:
        raise UsageError(
            f"max_length {recipe.max_length} is beyond a context (the delta and the templates of "
            f"its vocabulary take {least} tokens): shorten it"
        )
    return recipe.max_length or least
