"""Fine-tune a base model itself on a delta's data: the ceiling that the delta is measured against.

    full   every weight learns; the result is the base's GGUF with other weights
    lora   pairs of small matrices learn beside the projections of each block (Hu et al. 2021, arXiv
           2106.09685; `peft`); the result is llama.cpp's LoRA GGUF, which runs on the base

The base is a GGUF of a kind in `model_kinds`, or a Hugging Face llama folder. With `--prompt gguf`
it learns from the prompts, token for token, in which it will be asked: those of its own chat
template. A named form is that of a delta's examples. Knows no template and no adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmc_export import asked_examples, delta_model, gguf_file, gguf_reader
from cmc_export.asked_examples import Item
from cmc_export.finetuned_file import ADAPTER, write_full, write_lora
from cmc_export.gguf_file import TensorType
from cmc_export.loop import Batch, Objective, check_output, fit, run_folder, use_bf16
from cmc_export.objective import token_losses
from cmc_export.recipe import Loop, build_recipe
from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.errors import DataError, MissingExtra, TokenizerError, UsageError
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm, Turns, named_form
from cmc_local.text.rows import Conversation, last_turn, read_conversations, split

Method = Literal["full", "lora"]
METHODS: Final = get_args(Method)
LEARNING_RATES: Final[Mapping[str, float]] = {"full": 5e-5, "lora": 2e-4}
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What llama.cpp's LoRA can stand beside in a block; embeddings and heads may be tied."""
LARGEST_RANK: Final = 1024
OWN_TEMPLATE: Final = "gguf"
"""The prompt form that is the chat template of the base's GGUF."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Loop):
    """A base model on questions and answers."""

    model: Path
    """A GGUF of a llama, qwen2 or gemma3, or a Hugging Face llama folder."""
    data: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    """Held out, never trained on."""
    method: Method = "full"
    rank: int = 8
    lora_alpha: float = 16.0
    """What the small matrices give is multiplied by this over the rank."""
    targets: tuple[str, ...] = TARGETS
    """Of LoRA: the projections that it stands beside."""
    tensor_type: TensorType = "F16"
    """Of the written matrices."""
    prompt: str = "cmc"
    """A form's name, a template text that holds {query}, or `gguf`: the GGUF's chat template."""
    turns: Turns = "all"
    max_length: int = 0
    """Tokens of an example; what is longer loses its end. 0 takes the model's context."""
    patience: int = 3
    """Looks at the held-out part without a better loss before the run ends; 0 never ends it."""
    epochs: float = 3.0
    weight_decay: float = 0.01
    valid_share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("method", METHODS),
            ("turns", get_args(Turns)),
            ("tensor_type", get_args(TensorType)),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if not 1 <= self.rank <= LARGEST_RANK:
            raise UsageError(f"rank must be between 1 and {LARGEST_RANK}, not {self.rank}")
        if not self.lora_alpha > 0:
            raise UsageError(f"lora_alpha must be above 0, not {self.lora_alpha}")
        for name in ("max_length", "patience"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not self.data:
            raise UsageError("no data to train on: give --data FILE")
        if self.compile:
            raise UsageError("compile is for `pretrain`, whose rows have one length: leave it out")
        unfit = [name for name in self.targets if name not in TARGETS]
        if unfit or not self.targets:
            raise UsageError(
                f"a LoRA beside {unfit[0] if unfit else 'nothing'} does not convert to llama.cpp's "
                f"format: choose targets among {', '.join(TARGETS)}"
            )


def recipe_of(values: Mapping[str, Any]) -> FinetuneRecipe:
    """A recipe from flags or a table, None left out; the learning rate is the method's own."""
    given = {name: value for name, value in values.items() if value is not None}
    usual = LEARNING_RATES.get(given.get("method", "full"), LEARNING_RATES["full"])
    return build_recipe(FinetuneRecipe, "finetune", None, {"learning_rate": usual, **given})


def finetune(recipe: FinetuneRecipe) -> dict[str, Any]:
    """Run it all and write `recipe.output`, a GGUF; returns the summary.

    With `resume` a finished output is left as it is, and an unfinished run goes on. Raises
    InputError for a base of a kind that is not known, before anything is trained.
    """
    if not check_output(recipe):
        return {"output": str(recipe.output), "already_there": True}
    base = read_base(recipe)
    rows = _read_rows(recipe, base)
    source = recipe.model
    if recipe.method == "lora":
        add_lora(base.model, recipe)
        if use_bf16(recipe):
            delta_model.shrink(base.model)
    elif source.is_dir():
        source = _converted(recipe)
    learning = sum(p.numel() for p in base.model.parameters() if p.requires_grad)
    patience = recipe.patience if rows[1] is not None else 0
    summary = fit(base.model, Answers(), rows, collate, recipe, patience=patience, looks=10)
    if recipe.method == "lora":
        write_lora(base.model, recipe.output, recipe.lora_alpha, recipe.tensor_type)
    else:
        write_full(base.model, source, recipe.output, recipe.tensor_type)
    shutil.rmtree(run_folder(recipe.output))
    return {
        "output": str(recipe.output),
        "method": recipe.method,
        "learning_parameters": learning,
        **summary,
    }


# --- the base model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The model that learns, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: DeltaTokenizer
    puts_bos: bool
    """Whether the model's texts begin with BOS."""


def read_base(recipe: FinetuneRecipe) -> Base:
    """The recipe's model in float32, with the tokenizer that comes with it."""
    if recipe.model.is_dir():
        data, model = _tokenizer_json(recipe.model), delta_model.load(recipe.model)
    else:
        model = gguf_reader.read(recipe.model)
        data = tokenizer_of(recipe.model).to_str().encode()
    tokenizer = DeltaTokenizer(data)
    begin = Tokenizer.from_str(data.decode("utf-8")).encode("").ids[:1]
    puts_bos = bool(begin) and begin[0] == tokenizer.bos_id
    if len(tokenizer.vocabulary) > model.config.vocab_size:
        raise TokenizerError(
            f"{recipe.model} has {model.config.vocab_size:,} tokens, its tokenizer "
            f"{len(tokenizer.vocabulary):,}: give the tokenizer that belongs to it"
        )
    return Base(model.train(), tokenizer, puts_bos)


def _tokenizer_json(folder: Path) -> bytes:
    try:
        return (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{folder}/tokenizer.json cannot be read ({error.strerror}): save the tokenizer there"
        ) from None


def _converted(recipe: FinetuneRecipe) -> Path:
    """The base's folder as a GGUF in the run folder, before a step is taken: it may be refused."""
    run = run_folder(recipe.output)
    run.mkdir(parents=True, exist_ok=True)
    try:
        gguf_file.write(recipe.model, run / "base.gguf", type=recipe.tensor_type)
    except BaseException:
        with suppress(OSError):  # an earlier part of the run is in it
            run.rmdir()
        raise
    return run / "base.gguf"


# --- rows and loss -------------------------------------------------------------------------------


def _read_rows(recipe: FinetuneRecipe, base: Base) -> tuple[Any, Any]:
    """The training and the held-out rows, None where nothing is held out."""
    context = int(base.model.config.max_position_embeddings)
    if recipe.max_length > context:
        raise UsageError(
            f"max_length {recipe.max_length} is beyond the model's context of {context}: shorten it"
        )
    end = recipe.max_length or context

    def rows(conversations: Sequence[Conversation]) -> list[Item]:
        kept = [last_turn(c) if recipe.turns == "last" else c for c in conversations]
        if recipe.prompt == OWN_TEMPLATE:
            found = asked_examples.encode(recipe.model, kept, end)
        else:
            form = named_form(recipe.prompt)
            found = [encode(base, form, one, end) for one in kept]
        return [row for row in found if any(row["in_loss"])]

    if recipe.valid:
        parts = (read_conversations(recipe.data), read_conversations(recipe.valid))
    else:
        parts = split(read_conversations(recipe.data), recipe.valid_share, recipe.seed)
    train, valid = rows(parts[0]), rows(parts[1])
    if not train:
        raise DataError(
            f"{recipe.data[0]}: every question fills {end} tokens, no room for an answer: "
            "raise --max-length"
        )
    return train, valid or None


def encode(base: Base, form: PromptForm, messages: Conversation, end: int) -> Item:
    """One conversation, cut at `end` tokens; begins with BOS only if the base's own texts do."""
    ids, in_loss = base.tokenizer.example(form, messages)
    first = 1 if ids[0] == base.tokenizer.bos_id and not base.puts_bos else 0
    kept = slice(first, first + end)
    return {"input_ids": tuple(ids[kept]), "in_loss": tuple(in_loss[kept])}


def collate(items: Sequence[Item]) -> Batch:
    """Items -> a batch padded on the right, T tokens less the last.

    input_ids (B, T-1) int64; targets (B, T-1) int64, the next tokens; keep (B, T-1) bool, whether
    the next token is in the loss.
    """
    width = max(len(item["input_ids"]) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.int64)
    in_loss = torch.zeros(len(items), width, dtype=torch.bool)
    for i, item in enumerate(items):
        ids[i, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
        in_loss[i, : len(item["in_loss"])] = torch.tensor(item["in_loss"])
    return {
        "input_ids": ids[:, :-1].contiguous(),
        "targets": ids[:, 1:].contiguous(),
        "keep": in_loss[:, 1:].contiguous(),
    }


class Answers(Objective):
    """Cross-entropy of the model itself on the tokens of the answers."""

    def counts(self, batch: Batch) -> Tensor:
        """(1,) float: tokens in the loss."""
        return batch["keep"].sum()[None].float()

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """The mean over the step's answer tokens, () float32, nats."""
        keep = batch["keep"]
        logits: Tensor = model(input_ids=batch["input_ids"], keep=keep)  # (N, V)
        losses = token_losses(logits.float(), batch["targets"][keep])
        return losses.sum() / counts[0].clamp(min=1.0)


# --- LoRA ----------------------------------------------------------------------------------------


def add_lora(model: PreTrainedModel, recipe: FinetuneRecipe) -> None:
    """Put the recipe's small matrices into the model; they alone learn from then on."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{error.name} is not installed: pip install "cmc-local[train]"'
        ) from None
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.lora_alpha, target_modules=list(recipe.targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
