"""The run on real models, as the commands that a user would type, one after another.

    texts -> pretrain a delta (or --pretrained FOLDER)
    each task:  data -> plain and prompted on each base
                     -> record each template's answers -> train, export, measure: each delta, seed
                     -> a LoRA on each base, proxy-tuning with SmolLM2's
    table -> runs/real/report.html, table.md

A stage whose result is there is passed over, and an unfinished one goes on. A base whose file is
not there is left out, as is a LoRA that `cmc-local finetune` cannot make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cmc_export.answers import TABLE
from cmc_export.real import data, forgetting, table, texts
from cmc_export.real.measure import Sizes, measure_words
from cmc_export.real.places import (
    MODELS,
    RUNS,
    TEMPLATES,
    USUAL,
    WITH_WORDS,
    WITHOUT_TEMPLATE,
    Cell,
    TaskPlace,
    gguf,
)
from cmc_export.stages import Say, Stage, run
from cmc_local.errors import InputError, TrainingError, UsageError

ALL_TASKS: Final = (*data.MAKERS, "forget")
ALL_ARMS: Final = ("plain", "prompted", "delta", "lora", "proxy")
RIVAL_TASKS: Final = ("short", "style")
"""The tasks on which LoRA and proxy-tuning are measured unless arms are named."""

PRETRAIN: Final = (
    "--vocabulary 4096 --width 160 --layers 6 --heads 5 --mlp 432 --context 1024 --epochs 2 "
    "--batch 32 --learning-rate 2e-3 --resume"
)
ASKED: Final = "--prompt cmc --turns last"
LEARN: Final = f"{ASKED} --batch 16 --learning-rate 1e-3 --patience 0 --resume"
EPOCHS: Final = {"short": 4, "label": 6, "format": 4, "style": 4}
FORGET: Final = (
    f"--task forget --forget-loss ascent --forget-bound 6 --retain-rows 3 {ASKED} "
    "--batch 8 --learning-rate 5e-4 --steps 200 --patience 0 --resume"
)
LORA: Final = (
    f"--method lora {ASKED} --batch 8 --epochs 3 --learning-rate 1e-3 "
    "--max-length 384 --patience 0 --resume"
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is to be done."""

    tasks: tuple[str, ...] = ALL_TASKS
    bases: tuple[str, ...] = tuple(MODELS)
    arms: tuple[str, ...] = ()
    """Empty: all, LoRA and proxy-tuning on RIVAL_TASKS alone."""
    templates: tuple[str, ...] = USUAL
    seeds: tuple[int, ...] = (0,)
    runs: Path = RUNS
    pretrained: Path | None = None
    precision: str = "int8"
    more: str = ""
    """Words for every `train` and `finetune`, after the others and so above them."""
    sizes: Sizes = field(default_factory=Sizes)
    alpha_of: int | None = None
    """The seed whose tuned alpha all seeds take; None: each chooses its own."""

    def __post_init__(self) -> None:
        for name, known in (
            ("tasks", ALL_TASKS),
            ("bases", tuple(MODELS)),
            ("arms", ALL_ARMS),
            ("templates", tuple(TEMPLATES)),
        ):
            for one in getattr(self, name):
                if one not in known:
                    raise UsageError(f"--{name} {one}: choose some of {', '.join(known)}")

    def wants(self, arm: str, task: str) -> bool:
        """Whether an arm is measured on a task."""
        if self.arms:
            return arm in self.arms
        return arm not in ("lora", "proxy") or task in RIVAL_TASKS

    @property
    def initial(self) -> Path:
        """The pretrained delta."""
        return self.pretrained or self.runs / "pretrained"


def make_all(chosen: Chosen, say: Say) -> None:
    """Everything that is chosen, in order, then the table of all results that are there."""
    bases = [base for base in chosen.bases if _is_there(base, say)]
    if not bases:
        raise InputError("no real model is there: see CMC_REAL")
    if chosen.pretrained is not None and not chosen.pretrained.is_dir():
        raise InputError(f"no {chosen.pretrained}: give the folder of a pretrained delta")
    for task in chosen.tasks:
        make_data(chosen, task, bases, say)
        for stage in stages(chosen, task, bases, say):
            try:
                run(stage, say)
            except TrainingError as error:
                if not _may_fail(stage):
                    raise
                say(f"passed over: {error}")
        table.write(chosen.runs, say)


def make_data(chosen: Chosen, task: str, bases: Sequence[str], say: Say) -> None:
    """The task's files; for `forget` what each base knows comes first."""
    if task != "forget":
        data.write_data(chosen.runs, task)
        return
    for base in bases:
        words = f"known --bases {base} --runs {chosen.runs} --threads {chosen.sizes.threads}"
        run(Stage(forgetting.known_file(chosen.runs, base), words, "cmc_export.real"), say)
    forgetting.write_data(chosen.runs, bases)


def stages(chosen: Chosen, task: str, bases: Sequence[str], say: Say) -> Iterator[Stage]:
    """A task's commands once its data is there."""
    for arm in ("plain", "prompted"):
        if chosen.wants(arm, task):
            yield from (_measured(chosen, Cell(task, base, arm)) for base in bases)
    if chosen.wants("delta", task):
        yield from pretrain_stages(chosen)
        for seed in chosen.seeds:
            for templates in chosen.templates:
                if not all(_is_there(name, say) for name in TEMPLATES[templates]):
                    continue
                yield from delta_stages(chosen, task, templates, seed)
                cells = (Cell(task, base, f"delta-{templates}", seed) for base in bases)
                yield from (_measured(chosen, cell) for cell in cells)
    if task != "forget":
        yield from rival_stages(chosen, task, bases)


def pretrain_stages(chosen: Chosen) -> Iterator[Stage]:
    """The delta as a plain language model, unless one is given."""
    if chosen.pretrained is None and not chosen.initial.exists():
        text = chosen.runs / "pretrain.jsonl"
        texts.write_pretraining_text(text)
        words = f"pretrain --text {text} {PRETRAIN} -o {chosen.initial}"
        yield Stage(chosen.initial, words)


def delta_stages(chosen: Chosen, task: str, templates: str, seed: int) -> Iterator[Stage]:
    """The templates' answers, the delta beside them, its adapter."""
    place = TaskPlace(chosen.runs, task)
    names, held = TEMPLATES[templates], "retain" if task == "forget" else "valid"
    with_words, initial = templates in WITH_WORDS, chosen.initial
    if with_words:
        initial = place.with_words
        words = f"{chosen.initial} --data {place.data('train')} -o {initial}"
        yield Stage(initial, words, "cmc_export.real.words")
    given = f"--data {place.data('train')} --{held} {place.data(held)}"
    kind = "--task forget " if task == "forget" else ""
    tables = {name: place.answers(name, with_words=with_words) for name in names}
    for name, table_ in tables.items():
        yield Stage(
            table_ / TABLE,
            f"record --template {gguf(name)} --template-prompt {_asked_as(name)} {kind}{given} "
            f"--init {initial} {ASKED} --resume -o {table_}",
        )
    answers = " ".join(f"--answers {table_}" for table_ in tables.values())
    learn = FORGET if task == "forget" else f"{LEARN} --epochs {EPOCHS[task]}"
    delta, adapter = place.delta(templates, seed), place.adapter(templates, seed)
    yield Stage(
        delta,
        f"train {answers} --init {initial} {given} {learn} --seed {seed} {chosen.more} -o {delta}",
    )
    yield Stage(
        adapter,
        f"export {delta} -o {adapter} --template {gguf(names[0])} --data {place.data(held)} "
        f"--precision {chosen.precision}",
    )


def _asked_as(name: str) -> str:
    """A template is asked as the runner asks it: in its own chat template, if it has one."""
    return "adapter" if name in WITHOUT_TEMPLATE else "gguf"


def rival_stages(chosen: Chosen, task: str, bases: Sequence[str]) -> Iterator[Stage]:
    """LoRA on each base, and proxy-tuning by SmolLM2's."""
    place = TaskPlace(chosen.runs, task)
    with_lora = list(bases) if chosen.wants("lora", task) else []
    proxied = chosen.wants("proxy", task)
    for seed in chosen.seeds:
        for base in dict.fromkeys([*with_lora, *(["smollm2"] if proxied else [])]):
            target = place.lora(base, seed)
            yield Stage(
                target,
                f"finetune --model {gguf(base)} {LORA} --data {place.data('train')} "
                f"--valid {place.data('valid')} --seed {seed} {chosen.more} -o {target}",
            )
        for base in with_lora:
            yield _measured(chosen, Cell(task, base, "lora", seed))
        for base in bases if proxied else ():
            yield _measured(chosen, Cell(task, base, "proxy", seed))


def _measured(chosen: Chosen, cell: Cell) -> Stage:
    words = measure_words(cell, chosen.runs, chosen.sizes, chosen.alpha_of)
    return Stage(cell.result(chosen.runs), words, "cmc_export.real")


def _may_fail(stage: Stage) -> bool:
    """Whether the run goes on without it: LoRA, and what is measured with one."""
    return stage.command.startswith("finetune") or any(
        f"--arms {arm}" in stage.command for arm in ("lora", "proxy")
    )


def _is_there(base: str, say: Say) -> bool:
    try:
        gguf(base)
    except InputError as error:
        say(f"left out: {error}")
        return False
    return True
