"""Train a delta beside a frozen template: what `cmc-local train` does.

    examples.py   conversations -> rows of tokens
    templates.py  rows -> the template's log-probabilities, no gradient
    objective.py  both logits -> loss
    loop.py       steps, checkpoints, log, early end

The result is a Hugging Face llama folder with tokenizer.json and cmc.json beside the weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, PreTrainedModel

from cmc_export import delta_model, objective
from cmc_export.delta_model import CheckpointInfo
from cmc_export.examples import collate, loss_tokens, read_examples
from cmc_export.loop import (
    Batch,
    Objective,
    check_output,
    fit,
    on_cpu,
    total_steps,
    use_bf16,
    write_output,
)
from cmc_export.pretraining import start_model
from cmc_export.recipe import TrainRecipe
from cmc_export.templates import (
    AdaptedTemplate,
    CachedTemplate,
    FolderTemplate,
    Template,
    check_same_vocabulary,
    delta_logits,
    frozen_delta,
    parameter_count,
    parse_with_adapter,
    template_context,
    tokenizer_file,
)
from cmc_local.adapter import Normalization, TemplateName
from cmc_local.alignment import DeltaTokenizer
from cmc_local.errors import TokenizerError, UsageError
from cmc_local.prompts import PromptForm, named_form


class Instruct(Objective):
    """Cross-entropy of softmax(template + delta) on the tokens of the answers."""

    def __init__(self, template: Template, normalization: Normalization, vocabulary: int) -> None:
        self.template, self.normalization, self.vocabulary = template, normalization, vocabulary

    def counts(self, batch: Batch) -> Tensor:
        """(1,) float: tokens in the loss."""
        return batch["keep"].sum()[None].float()

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """See objective.instruct."""
        return objective.instruct(self.token_losses(model, batch), counts[0])

    def token_losses(self, model: Any, batch: Batch) -> Tensor:
        """(N,) float32, nats, for the kept positions row by row."""
        ids, keep = batch["input_ids"], batch["keep"]
        with torch.autocast(ids.device.type, enabled=False):
            template = self.template(ids, keep)
        delta = delta_logits(model, ids, keep, self.vocabulary)
        return objective.token_losses(
            objective.combine(template, delta, self.normalization), batch["targets"][keep]
        )


class Forget(Instruct):
    """Gradient difference; rows with `forget` are pushed away up to the bound, others learned."""

    def __init__(
        self, template: Template, normalization: Normalization, vocabulary: int, bound: float
    ) -> None:
        super().__init__(template, normalization, vocabulary)
        self.bound = bound

    def counts(self, batch: Batch) -> Tensor:
        """(2,) float: tokens to forget, tokens to keep."""
        per_row, away = batch["keep"].sum(dim=1), batch["forget"]
        return torch.stack([per_row[away].sum(), per_row[~away].sum()]).float()

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """See objective.forget."""
        losses = self.token_losses(model, batch)
        away = batch["forget"][:, None].expand_as(batch["keep"])[batch["keep"]]
        return objective.forget(
            losses[away], losses[~away], self.bound, counts=(counts[0], counts[1])
        )


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, before any weight of the template is read."""

    tokenizer_json: bytes
    tokenizer: DeltaTokenizer
    form: PromptForm
    model: LlamaForCausalLM
    max_length: int
    rows: tuple[Dataset[Any], Dataset[Any] | None]


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
    rows_a_step = recipe.batch * recipe.accumulation
    per_row = loss_tokens(train_rows)
    return {
        "template": recipe.template.resolve().name,
        "template_parameters": parameter_count(recipe.template),
        "parameters": parts.model.num_parameters(),
        "examples": len(train_rows),
        "held_out_examples": len(valid_rows) if valid_rows is not None else 0,
        "longest_example": max(per_row.lengths),
        "tokens": sum(per_row.lengths),
        "tokens_in_loss": sum(per_row.in_loss),
        "steps": steps,
        "tokens_in_all": round(steps * rows_a_step * sum(per_row.lengths) / len(per_row.lengths)),
        "memory_mib": memory_mib(recipe, parts),
    }


def memory_mib(recipe: TrainRecipe, parts: Parts) -> int:
    """A rough upper estimate, MiB.

    16 bytes a parameter of the delta (weight, gradient, two moments of Adam), the template's
    weights, five (N, V) float32 arrays of logits, and about 18 float32 numbers a token, layer and
    unit of width that the backward pass needs. The cache's limit comes on top.
    """
    per_row = loss_tokens(parts.rows[0])
    shape = delta_model.shape_of(parts.model.config)
    bytes_a_weight = 2 if template_dtype(recipe) == torch.bfloat16 else 4
    positions = recipe.batch * max(per_row.lengths)
    total = (
        16 * parts.model.num_parameters()
        + bytes_a_weight * parameter_count(recipe.template)
        + 5 * 4 * recipe.batch * max(per_row.in_loss) * shape.vocabulary
        + 18 * 4 * positions * shape.layers * shape.width
    )
    return round(total / 2**20) + recipe.cache_mb


def prepare(recipe: TrainRecipe) -> Parts:
    """Read tokenizer and data, make the delta; every mistake in them is found here."""
    tokenizer_json = _tokenizer_json(recipe)
    tokenizer = DeltaTokenizer(tokenizer_json)
    form = named_form(recipe.prompt)
    if recipe.init is not None and (recipe.init / "tokenizer.json").is_file():
        check_same_vocabulary(recipe.init, tokenizer.vocabulary)
    model = start_model(recipe, tokenizer.vocabulary, recipe.seed)
    max_length = _max_length(recipe, model)
    rows = read_examples(recipe, tokenizer, form, max_length)
    return Parts(tokenizer_json, tokenizer, form, model, max_length, rows)


def make_objective(recipe: TrainRecipe, parts: Parts) -> Objective:
    """The recipe's loss beside its template (whose weights are read here)."""
    vocabulary = len(parts.tokenizer.vocabulary)
    template = make_template(recipe, parts.tokenizer)
    if recipe.task == "instruct":
        return Instruct(template, recipe.normalization, vocabulary)
    bound = recipe.forget_bound or objective.uniform_loss(vocabulary)
    return Forget(template, recipe.normalization, vocabulary, bound)


def make_template(recipe: TrainRecipe, tokenizer: DeltaTokenizer) -> Template:
    """The folder's model, with the deltas of `with_adapter` on it, behind the cache."""
    device = torch.device("cpu" if on_cpu(recipe) else "cuda")
    vocabulary = tokenizer.vocabulary
    chosen = [parse_with_adapter(text) for text in recipe.with_adapter]
    deltas = [(frozen_delta(f, vocabulary, device), _alpha(f, alpha)) for f, alpha in chosen]
    template: Template = FolderTemplate(
        recipe.template,
        len(vocabulary),
        device=device,
        dtype=template_dtype(recipe),
        normalize=recipe.normalization != "add",
    )
    if deltas:
        template = AdaptedTemplate(template, deltas, len(vocabulary))
    return CachedTemplate(template, recipe.cache_mb * 2**20) if recipe.cache_mb else template


def template_dtype(recipe: TrainRecipe) -> torch.dtype:
    """bf16 where the hardware has it, unless the recipe says otherwise."""
    bf16 = use_bf16(dataclasses.replace(recipe, precision=recipe.template_precision))
    return torch.bfloat16 if bf16 else torch.float32


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
        "data": [path.name for path in recipe.data],
        "retain": [path.name for path in recipe.retain],
        "examples": len(parts.rows[0]),
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
            recipe.template.resolve().name, parts.tokenizer.vocabulary.fingerprint
        ),
        training=training,
    )


def _alpha(folder: Path, given: float | None) -> float:
    if given is not None:
        return given
    info = delta_model.read_info(folder)
    return info.alpha if info is not None else 1.0


def _tokenizer_json(recipe: TrainRecipe) -> bytes:
    path = recipe.tokenizer or tokenizer_file(recipe.template)
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}): correct it") from None


def _max_length(recipe: TrainRecipe, model: PreTrainedModel) -> int:
    contexts = (int(model.config.max_position_embeddings), template_context(recipe.template))
    if recipe.max_length > min(contexts):
        raise UsageError(
            f"max_length {recipe.max_length} is beyond a context (delta {contexts[0]}, template "
            f"{contexts[1]}): shorten it"
        )
    return recipe.max_length or min(contexts)
