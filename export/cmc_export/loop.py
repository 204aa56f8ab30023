"""The training loop around transformers.Trainer: what `pretrain` and `train` share.

Knows rows and a loss, not what they mean. Around the Trainer it adds: a loss over a step's tokens
that does not depend on how they are split into forward passes, checkpoints by the clock, a Ctrl-C
that leaves a checkpoint, an early end by the held-out loss, a JSONL log, and a folder that appears
whole or not at all.

    OUTPUT.run/     while it runs: recipe.json, log.jsonl, checkpoint-N/, best/
    OUTPUT/         when it is done
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from cmc_export.loop_watch import BestKeeper, Clock, Interrupt, LogWriter
from cmc_export.processes import launched, leads, processes, wait_for_all
from cmc_export.recipe import Loop, Precision, as_json
from cmc_local.errors import TrainingError, UsageError

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Any]], Batch]

# Settings that may differ between a run and its continuation.
FREE_ON_RESUME = ("resume", "threads", "log_every", "save_minutes", "output")


class Objective(ABC):
    """A loss that is a mean over the tokens of a whole optimizer step, given batch by batch."""

    @abstractmethod
    def counts(self, batch: Batch) -> Tensor:
        """How many tokens each of the loss's parts has in this batch, (P,) float."""

    def prepare(self, batch: Batch) -> None:  # noqa: B027 (an objective may have nothing to do)
        """Told of a batch before its step begins, while the one before it is still computed."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """This batch's share of the step's loss, () float32; `counts` are those of the step."""


class LoopTrainer(Trainer):
    """transformers.Trainer with an Objective for its loss and a plain pass for its evaluation."""

    def __init__(self, objective: Objective, collate: Collate, bf16: bool, **kwargs: Any) -> None:
        super().__init__(data_collator=collate, **kwargs)
        self.loss_is_scaled_for_ga = True
        self.objective = objective
        self.train_loss = objective.loss
        self.autocast_bf16 = bf16
        self.tokens_seen = 0
        self._next: tuple[Iterator[Batch] | None, list[Batch]] = (None, [])

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | None]:
        """The batches of one optimizer step, and the step's counts over all processes.

        The step after it is read as well, so that the objective can prepare it meanwhile.
        """
        epoch, batches = self._next
        if epoch is not epoch_iterator:
            batches = list(itertools.islice(epoch_iterator, num_batches))
        is_last = self.state.global_step + 1 >= self.state.max_steps
        following = [] if is_last else list(itertools.islice(epoch_iterator, num_batches))
        for batch in following:
            self.objective.prepare(batch)
        self._next = (epoch_iterator, following)
        if not batches:
            return batches, None
        return batches, self._sum([self.objective.counts(b) for b in batches]).to(device)

    def _sum(self, counts: Sequence[Tensor]) -> Tensor:
        """The sum over the tensors and over all processes."""
        total = torch.stack(list(counts)).sum(0).to(self.args.device)
        if processes() > 1:
            torch.distributed.all_reduce(total)
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The objective on one batch; autocast by us, so that logits are turned to fp32 once."""
        counts = self.objective.counts(inputs) if num_items_in_batch is None else num_items_in_batch
        self.tokens_seen += inputs["input_ids"].numel()
        with self._autocast():
            # Data-parallel training takes the mean of the processes' gradients.
            return self.train_loss(model, inputs, counts) * processes()

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The objective over the held-out rows as one step; logged as `eval_loss`."""
        self.model.eval()
        batches = list(self._held_out_batches())
        counts = torch.stack([self.objective.counts(batch) for batch in batches]).sum(0)
        counts = counts.to(self.args.device)
        losses = [torch.zeros((), device=self.args.device)]
        for batch in batches[self.args.process_index :: processes()]:
            ready = {name: value.to(self.args.device) for name, value in batch.items()}
            with self._autocast():
                losses.append(self.objective.loss(self.model, ready, counts).detach())
        metrics = {"eval_loss": float(self._sum(losses))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _autocast(self) -> torch.autocast:
        kind = self.args.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.autocast_bf16)

    def _held_out_batches(self) -> Iterator[Batch]:
        rows: Any = self.eval_dataset
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            yield self.data_collator([rows[i] for i in range(start, min(start + size, len(rows)))])


def on_cpu(loop: Loop) -> bool:
    """Whether the run computes on the CPU."""
    return loop.device == "cpu" or not torch.cuda.is_available()


def use_bf16(loop: Loop, precision: Precision | None = None) -> bool:
    """Whether autocast pays: on a CPU only with AMX (without it fp32 was a third faster)."""
    precision = precision or loop.precision
    if precision != "auto":
        return precision == "bf16"
    if not on_cpu(loop):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def total_steps(loop: Loop, rows: int) -> int:
    """Optimizer steps of the run over `rows` training rows."""
    if loop.steps:
        return loop.steps
    batch = loop.batch * launched()
    batches = rows // batch if loop.compile else math.ceil(rows / batch)
    per_epoch = max(1, math.ceil(batches / loop.accumulation))
    return max(1, math.ceil(per_epoch * loop.epochs))


def run_folder(output: Path) -> Path:
    """Where a run keeps its checkpoints until the output is written."""
    return output.with_name(output.name + ".run")


def check_output(loop: Loop) -> bool:
    """Whether there is anything to do: False when the output is there already (--resume).

    Raises UsageError where a run would overwrite a folder or another run's checkpoints.
    """
    output, run = loop.output, run_folder(loop.output)
    if not leads():
        return not output.exists() or not loop.resume
    if output.exists():
        if loop.resume:
            return False
        raise UsageError(f"{output} exists already: choose another --output, or remove it")
    if _last_checkpoint(run) is not None:
        if not loop.resume:
            raise UsageError(f"{run} holds an unfinished run: add --resume, or remove it")
        _check_same_recipe(run / "recipe.json", loop)
    return True


def open_run(loop: Loop) -> Path:
    """The run folder, made or found again."""
    run = run_folder(loop.output)
    run.mkdir(parents=True, exist_ok=True)
    if not leads():
        return run
    text = json.dumps(as_json(loop), indent=2) + "\n"
    (run / "recipe.json").write_text(text, encoding="utf-8")
    return run


def _check_same_recipe(path: Path, loop: Loop) -> None:
    before, now = json.loads(path.read_text(encoding="utf-8")), as_json(loop)
    for name in now:
        if name not in FREE_ON_RESUME and before.get(name) != now[name]:
            raise UsageError(
                f"{path} was started with {name} {before.get(name)!r}, now it is {now[name]!r}: "
                f"give the same, or remove {path.parent}"
            )


def fit(
    model: PreTrainedModel,
    objective: Objective,
    rows: tuple[Dataset[Any], Dataset[Any] | None],
    collate: Collate,
    loop: Loop,
    *,
    patience: int = 0,
    looks: int = 4,
    by_length: bool = False,
) -> dict[str, Any]:
    """Train `model` in place; returns the summary (steps, tokens, seconds, losses).

    `looks` is how often it looks at the held-out rows where the recipe leaves it open; `by_length`
    puts rows of like length into a batch (items are mappings with `input_ids`).
    With `patience` the run ends after so many looks at the held-out part without a better loss;
    the model is then the best one, otherwise the last one. Raises TrainingError when the loss is
    no number any more, or on Ctrl-C (after a checkpoint).
    """
    if loop.threads:
        torch.set_num_threads(loop.threads)
    run = open_run(loop)
    train_rows, valid_rows = rows
    steps = total_steps(loop, len(train_rows))
    bf16 = use_bf16(loop)
    arguments = _arguments(loop, run, steps, looks if valid_rows is not None else 0)
    arguments.train_sampling_strategy = "group_by_length" if by_length else "random"
    trainer = LoopTrainer(
        objective,
        collate,
        bf16,
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=valid_rows,
    )
    seen = partial(_tokens_seen, trainer)
    log = LogWriter(run / "log.jsonl", steps, seen, writes=leads())
    interrupt, best = Interrupt(), BestKeeper(run / "best", patience, writes=leads())
    trainer.callback_handler.callbacks.clear()
    for callback in _callbacks(loop, log, interrupt, best):
        trainer.add_callback(callback)
    if loop.compile:
        trainer.train_loss = torch.compile(objective.loss)
    with interrupt, log:
        trainer.train(resume_from_checkpoint=_last_checkpoint(run))
    if interrupt.pressed:
        raise TrainingError(
            f"stopped at step {trainer.state.global_step} of {steps}; a checkpoint is in {run}: "
            "go on with the same command and --resume"
        )
    if patience:
        _take_best(best, model)
    return {
        **log.summary(best=patience > 0),
        "best_step": best.step if patience else trainer.state.global_step,
        "parameters": model.num_parameters(),
        "precision": "bf16" if bf16 else "fp32",
    }


def _take_best(best: BestKeeper, model: PreTrainedModel) -> None:
    wait_for_all()  # one process writes the best weights
    best.restore(model)
    wait_for_all()  # and removes them, when all have read them


def _tokens_seen(trainer: LoopTrainer) -> int:
    return trainer.tokens_seen * processes()


def _callbacks(loop: Loop, log: LogWriter, interrupt: Interrupt, best: BestKeeper) -> list[Any]:
    from transformers.trainer_callback import DefaultFlowCallback

    return [DefaultFlowCallback(), log, best, Clock(loop.save_minutes), interrupt]


def _arguments(loop: Loop, run: Path, steps: int, looks: int) -> TrainingArguments:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cpu = on_cpu(loop)
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=steps,
        per_device_train_batch_size=loop.batch,
        per_device_eval_batch_size=loop.batch,
        gradient_accumulation_steps=loop.accumulation,
        learning_rate=loop.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(loop.warmup * steps),
        weight_decay=loop.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=loop.clip,
        optim="adamw_torch_fused",
        seed=loop.seed,
        use_cpu=cpu,
        logging_steps=loop.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if looks else "no",
        eval_steps=loop.evaluate_every or max(1, math.ceil(steps / max(1, looks))),
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_drop_last=loop.compile,  # one shape, one compilation
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process takes one GPU: no nn.DataParallel around the model
    return arguments


def _last_checkpoint(run: Path) -> str | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last)."""
    whole = [path.parent for path in run.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
    return str(newest) if newest is not None else None


def write_output(
    output: Path, model: PreTrainedModel, tokenizer: bytes, texts: dict[str, str]
) -> None:
    """A Hugging Face folder and its companions, renamed into place; the run folder goes."""
    if not leads():
        return
    run = run_folder(output)
    staging = run / "output"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with _no_bars():
        model.save_pretrained(staging)
    (staging / "generation_config.json").unlink(missing_ok=True)
    (staging / "tokenizer.json").write_bytes(tokenizer)
    for name, text in texts.items():
        (staging / name).write_text(text, encoding="utf-8")
    if (run / "log.jsonl").is_file():
        shutil.copyfile(run / "log.jsonl", staging / "log.jsonl")
    staging.rename(output)
    shutil.rmtree(run)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows a bar for every file it writes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
