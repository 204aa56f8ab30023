"""Counts and times in Prometheus' format, all named `cmc_*`.

The share of steps that goes to the deltas:

    rate(cmc_step_seconds_total{part="delta"}[5m]) / rate(cmc_step_seconds_total{part="total"}[5m])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmc_local.engine.timings import StepTimes

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_PARTS = ("decode", "delta", "map", "wait", "sample", "total")


class Watched(Protocol):
    """What is read off the model's thread."""

    @property
    def active(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def times(self) -> StepTimes: ...


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self, states: Callable[[], Sequence[Watched]]) -> None:
        """`states` is asked at each reading: how each loaded model is doing."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cmc_requests",
            "Requests answered; 499 where the client left first.",
            ("route", "status"),
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "cmc_prompt_tokens", "Prompt tokens of finished replies.", registry=self._registry
        )
        self.cached_tokens = Counter(
            "cmc_cached_prompt_tokens",
            "Prompt tokens that a cache held already.",
            registry=self._registry,
        )
        self.completion_tokens = Counter(
            "cmc_completion_tokens", "Tokens written.", registry=self._registry
        )
        self.first_token = Histogram(
            "cmc_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Steps(states))

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self._registry)


class _Steps(Collector):
    """What the models' threads count by themselves, all loaded ones together."""

    def __init__(self, states: Callable[[], Sequence[Watched]]) -> None:
        self._states = states

    def collect(self) -> Iterable[Metric]:
        states = self._states()
        if not states:
            return
        waiting = sum(one.waiting for one in states)
        active = sum(one.active for one in states)
        yield GaugeMetricFamily("cmc_queue_length", "Replies that wait.", waiting)
        yield GaugeMetricFamily("cmc_active_slots", "Replies under way.", active)
        yield CounterMetricFamily("cmc_steps", "Steps taken.", sum(one.steps for one in states))
        seconds = CounterMetricFamily(
            "cmc_step_seconds", "Where the time of steps went.", labels=["part"]
        )
        for part in _PARTS:
            spent = sum(getattr(one.times, f"{part}_seconds") for one in states)
            seconds.add_metric([part], spent)
        yield seconds
