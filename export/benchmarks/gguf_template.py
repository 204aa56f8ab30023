"""How fast a delta learns beside a GGUF: against what template and delta cost alone.

    python export/benchmarks/gguf_template.py --gguf models/template.gguf --data FILE [--rounds 5]

Three arms take turns on the same batches: the template's answers alone, the delta's step alone
(answers at hand, as from a recorded table), and both as `cmc-local train --answers-gb 0` does them,
the next batch's answers computed while the delta learns. Each arm has the threads that it has in
training. The figure is the larger of the first two, over the third: 1 is a perfect overlap. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from cmc_export.beside import Beside
from cmc_export.examples import collate
from cmc_export.recipe import TrainRecipe
from cmc_export.sums import Sums
from cmc_export.template_set import runs_ahead, template_threads
from cmc_export.training import make_objective, prepare

STEPS = 8
"""Batches of a round."""


class AtHand:
    """A template whose answers were computed before."""

    name = "at hand"

    def __init__(self, beside: Beside, answers: dict[int, Sums]) -> None:
        self.template_tokens, self._answers = beside.template_tokens, answers

    def prepare(self, batch: Any) -> None:
        pass

    def __call__(self, batch: Any) -> Sums:
        return self._answers[id(batch)]


def in_turns(arms: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            begun = perf_counter()
            arm()
            if turn:  # the first round warms up
                seconds[name].append(perf_counter() - begun)
    return seconds


def chosen_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shape", default="nano")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = chosen_options()
    recipe = TrainRecipe(
        template=(chosen.gguf,), data=(chosen.data,), output=Path("unused"), shape=chosen.shape,
        batch=chosen.batch, answers_gb=0.0, precision="fp32", turns="last",
    )  # fmt: skip
    parts = prepare(recipe)
    task: Any = make_objective(recipe, parts)
    beside = task.beside[0]
    optimizer = torch.optim.AdamW(parts.model.parameters(), lr=1e-5)
    rows = parts.rows[0]
    batches = [
        collate([rows[(i * chosen.batch + j) % len(rows)] for j in range(chosen.batch)])
        for i in range(STEPS)
    ]
    answers = {id(batch): beside(batch) for batch in batches}

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        task.loss(parts.model, batch, task.counts(batch)).backward()
        optimizer.step()

    def template_alone() -> None:
        for batch in batches:
            beside(batch)

    def delta_alone() -> None:
        task.beside[0] = AtHand(beside, answers)
        for batch in batches:
            step(batch)
        task.beside[0] = beside

    def together() -> None:
        task.prepare(batches[0])
        for i, batch in enumerate(batches):
            if i + 1 < len(batches):
                task.prepare(batches[i + 1])
            step(batch)

    arms = {"template": template_alone, "delta": delta_alone, "together": together}
    seconds = in_turns(arms, chosen.rounds)
    shares = [
        max(template, delta) / both for template, delta, both in zip(*seconds.values(), strict=True)
    ]
    tokens = sum(int(batch["input_ids"].numel()) for batch in batches)
    found = {
        "share": round(statistics.median(shares), 3),
        "ahead": runs_ahead(recipe),
        "template_threads": template_threads(recipe),
        "delta_threads": torch.get_num_threads(),
        **{f"{name}_tokens_per_second": round(tokens / statistics.median(found))
           for name, found in seconds.items()},
    }  # fmt: skip
    for name, value in found.items():
        print(f"{name:<30} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
