"""Fake models for `cmc-local eval`: the base gives "a" 0.4 and "b" 0.3, the delta doubles "b"."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from click.testing import Result

from cmc_local.commands.model_choice import ModelChoice
from cmc_local.model.steered import SteeredModel
from fakes import FakeBase, FakeShift, adapter, always

Run = Callable[..., Result]
P = (0.1, 0.4, 0.3, 0.1, 0.1)
PLAIN_NLL, STEERED_NLL = -math.log(0.3), -math.log(0.6 / 1.3)


class Loader:
    """Makes the fake model; counts what its bases decoded."""

    def __init__(self) -> None:
        self.bases: list[FakeBase] = []
        self.fails_at: int | None = None
        self.weights: dict[str, tuple[float, ...]] = {}
        """Of the files that do not give P."""

    def __call__(self, chosen: ModelChoice) -> SteeredModel:
        base = FakeBase(partial(self._rule, self.weights.get(chosen.gguf.name, P)))
        self.bases.append(base)
        model = SteeredModel(base, base.sampler)
        for one in chosen.adapters:
            shift = FakeShift(always(0, 0, math.log(2), 0, 0))
            model.attach(adapter(shift, name=one.path.name), one.alpha)
        return model

    def _rule(self, weights: tuple[float, ...], _seen: tuple[int, ...]) -> tuple[float, ...]:
        if self.fails_at is not None and len(self.bases[-1].decoded) >= self.fails_at:
            raise KeyboardInterrupt
        return tuple(map(math.log, weights))


NLL = ("--gguf", "model.gguf", "--adapter", "delta", "--data", "held-out.jsonl")


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return found
