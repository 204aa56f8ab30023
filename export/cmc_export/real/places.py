"""Where everything lies: the real models, the data, and what a run writes.

    runs/real/TASK/{train,valid,test}.jsonl       the data of a task
    runs/real/TASK/answers.TEMPLATE               a template's answers, recorded once
    runs/real/TASK/pretrained.words               the pretrained delta with the task's words
    runs/real/TASK/delta.TEMPLATES.SEED[.adapter] a delta, and its adapter
    runs/real/TASK/lora.BASE.SEED.gguf            the base's own LoRA
    runs/real/results/TASK/BASE.ARM.SEED.json     what was measured

Knows names only; nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cmc_local import real_models

RUNS: Final = Path("runs/real")
MODELS: Final[Mapping[str, str]] = {one.name: one.file for one in real_models.MODELS}
"""File names of the real models."""
WITHOUT_TEMPLATE: Final = ("gemma3",)
"""A base model, whose GGUF has no chat template: it is asked in the delta's form."""
FULL_NAMES: Final[Mapping[str, str]] = {one.name: one.title for one in real_models.MODELS}
TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "gemma3": ("gemma3",),
    "smollm2": ("smollm2",),
    "both": ("gemma3", "smollm2"),
    "words": ("gemma3",),
    "words-both": ("gemma3", "smollm2"),
}
"""What a delta learns beside, by the name it has in tables."""
WITH_WORDS: Final = ("words", "words-both")
"""Of TEMPLATES: the deltas whose vocabulary was given the task's frequent words (words.py)."""
USUAL: Final = tuple(name for name in TEMPLATES if name not in WITH_WORDS)
"""The deltas that a run makes unless some are named."""
BESIDE: Final[Mapping[str, str]] = {
    "gemma3": "beside Gemma",
    "smollm2": "beside SmolLM2",
    "both": "beside both",
    "words": "beside Gemma, with the task's words",
    "words-both": "beside both, with the task's words",
}
SIMPLE_ARMS: Final = ("plain", "prompted", "lora", "proxy")


def gguf(base: str) -> Path:
    """A real model's file; InputError where it is not there."""
    return real_models.find(base)


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a task, a base, an arm of it, and the seed where something was trained."""

    task: str
    base: str
    arm: str
    """plain, prompted, lora, proxy, or delta-TEMPLATES."""
    seed: int = 0

    @property
    def templates(self) -> str | None:
        """What the arm's delta learned beside; None for an arm without one."""
        return self.arm.removeprefix("delta-") if self.arm.startswith("delta-") else None

    @property
    def is_seeded(self) -> bool:
        """Whether the arm depends on a seed."""
        return self.arm not in ("plain", "prompted")

    def result(self, runs: Path) -> Path:
        """The file of its results."""
        seed = f".{self.seed}" if self.is_seeded else ""
        return runs / "results" / self.task / f"{self.base}.{self.arm}{seed}.json"


@dataclass(frozen=True, slots=True)
class TaskPlace:
    """The files of one task."""

    runs: Path
    task: str

    def data(self, part: str) -> Path:
        """train, valid or test (forget has further parts)."""
        return self.runs / self.task / f"{part}.jsonl"

    def answers(self, template: str, *, with_words: bool = False) -> Path:
        """What a template says on training and validation data, by a delta's vocabulary."""
        return self.runs / self.task / f"answers.{template}{'.words' if with_words else ''}"

    @property
    def with_words(self) -> Path:
        """The pretrained delta with the task's words."""
        return self.runs / self.task / "pretrained.words"

    def delta(self, templates: str, seed: int) -> Path:
        """The trained delta's folder."""
        return self.runs / self.task / f"delta.{templates}.{seed}"

    def adapter(self, templates: str, seed: int) -> Path:
        """The delta, packed."""
        return self.runs / self.task / f"delta.{templates}.{seed}.adapter"

    def lora(self, base: str, seed: int) -> Path:
        """The base's own LoRA."""
        return self.runs / self.task / f"lora.{base}.{seed}.gguf"
