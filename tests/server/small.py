"""A whole server whose model has five tokens: `</s>`, "a", "b", "ab" and a newline."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from cmc_local.model.requests import Ask
from cmc_local.model.shared import SharedModel
from cmc_local.model.steered import SteeredModel
from cmc_local.server.app import application
from cmc_local.server.guard import Policy
from cmc_local.server.limits import RequestLimits
from cmc_local.server.served import Entry, Models
from cmc_local.server.service import Service
from cmc_local.settings import Limits, Sampling
from fakes import FakeBase, FakeShift, GreedySampler, Rule, adapter, always

SAYS_A = always(0, 1, 0, 0, 0)
SHIFT_TO_B = always(0, 0, 3, 0, 0)
"""At alpha 1 it makes "b" (0 + 3) likelier than "a" (1)."""


class Noted(SharedModel):
    """Notes what it was asked."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.asks: list[Ask] = []
        super().__init__(*args, **settings)

    def astream(self, ask: Ask, **settings: Any) -> Any:
        self.asks.append(ask)
        return super().astream(ask, **settings)


class Gate:
    """A rule that says "a", and waits before each word while the gate is shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, tokens: tuple[int, ...]) -> Sequence[float]:
        self.reached.set()
        assert self.open.wait(10)
        return (0, 1, 0, 0, 0)


class Small:
    """The server; `adapters` are loaded ones by name and strength, each shifting to "b"."""

    def __init__(
        self,
        rule: Rule = SAYS_A,
        *,
        adapters: dict[str, float] | None = None,
        parallel: int = 2,
        n_ctx: int = 64,
        policy: Policy | None = None,
        limits: RequestLimits | None = None,
        sampling: Sampling | None = None,
        loaded: bool = True,
        patience: float | None = None,
    ) -> None:
        self.base = FakeBase(rule, n_ctx=n_ctx)
        self.samplings: list[Sampling] = []
        steered = SteeredModel(self.base, self._sampler, limits=Limits(parallel=parallel))
        for name, alpha in (adapters or {}).items():
            steered.attach(adapter(FakeShift(SHIFT_TO_B), name=name), alpha)
        limits = limits or RequestLimits()
        self.model = Noted(steered, queue=limits.queue, patience=patience)
        self.service = Service(
            models=Models([Entry(name="tiny")]),
            limits=limits,
            sampling=sampling or Sampling(temperature=0, max_tokens=3),
        )
        self.app = application(self.service, policy or Policy())
        self.client = TestClient(self.app, base_url="http://localhost:8080")
        if loaded:
            self.service.ready(self.model)

    def _sampler(self, sampling: Sampling) -> GreedySampler:
        self.samplings.append(sampling)
        return self.base.sampler(sampling)

    def post(self, path: str, **body: Any) -> Any:
        """A JSON answer, which must be one of success."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, status: int, **body: Any) -> dict[str, Any]:
        """The error of an answer with this status."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        error: dict[str, Any] = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def events(self, path: str, **body: Any) -> list[Any]:
        """What a stream's lines say; the last must be [DONE], and is left out."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]

    def wait(self, what: str, seconds: float = 5.0) -> None:
        """Until the model is `idle`, or has so many asks `active` or `waiting`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.model.state
            if what == "idle" and not state.active and not state.waiting:
                return
            if what in ("active", "waiting") and getattr(state, what):
                return
            time.sleep(0.005)
        raise AssertionError(f"not {what} within {seconds} seconds: {self.model.state}")

    def close(self) -> None:
        self.model.close()


def vectors(texts: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """For each text its length and its first token, (n, 2) float32."""
    return np.array([[len(one), one[0]] for one in texts], np.float32)
