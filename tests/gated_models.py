"""A shared model whose base decodes only while a gate is open, so that tests choose the moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic, sleep

import pytest

from cmc_local.model.requests import Ask
from cmc_local.model.shared import SharedModel
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from fakes import FakeBase, always

GREEDY = Sampling(temperature=0, max_tokens=4)


class Gated(FakeBase):
    """Decodes only while its gate is open, and no more than a step for each token it is given."""

    def __init__(self) -> None:
        super().__init__(always(0, 1, 0, 0, 0), n_ctx=512)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.pause = 0.0

    def decode_spans(self, spans):  # type: ignore[no-untyped-def]
        assert self.gate.wait(20)
        sleep(self.pause)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        super().decode_spans(spans)


class Made:
    def __init__(self, parallel: int = 2, **settings: object) -> None:
        self.base = Gated()
        self.model = SteeredModel(self.base, self.base.sampler, limits=Limits(parallel=parallel))
        self.shared = SharedModel(self.model, **settings)  # type: ignore[arg-type]


@pytest.fixture
def made() -> Iterator[Made]:
    one = Made()
    yield one
    one.base.gate.set()
    one.shared.close()


def ask(prompt: str = "b", **more: object) -> Ask:
    return Ask(prompt=prompt, **{"sampling": GREEDY, **more})  # type: ignore[arg-type]


def until(true: object, seconds: float = 10.0) -> None:
    end = monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert monotonic() < end, "it never came true"
        sleep(0.002)
