"""What all requests share: the models once they are there, settings, counts. Knows no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Literal

from cmc_local import __version__
from cmc_local.model.requests import Ask
from cmc_local.server.errors import Refusal, unavailable
from cmc_local.server.limits import RequestLimits
from cmc_local.server.metrics import Metrics
from cmc_local.server.remembered import Remembered
from cmc_local.server.requests import Setting
from cmc_local.server.served import Entry, Models, ServedModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt

Phase = Literal["loading", "ready", "draining", "failed"]


@dataclass(eq=False, kw_only=True)
class Service:
    """One server's state; belongs to the event loop's thread."""

    models: Models
    limits: RequestLimits = field(default_factory=RequestLimits)
    sampling: Sampling = field(default_factory=Sampling)
    """What a request leaves open."""
    base_prompt: BasePrompt | None = None
    phase: Phase = "loading"
    started: int = field(default_factory=lambda: int(time.time()))
    heavy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while texts are cut into tokens or embedded or an adapter is loaded, so that none of
    these takes all threads."""
    _still: dict[str, tuple[int, float]] = field(default_factory=dict, repr=False)
    """By model: the steps that were counted while it was busy, and since when."""

    def __post_init__(self) -> None:
        self.remembered = Remembered(self.limits.responses)
        self.metrics = Metrics(lambda: [one.state for one in self.running])

    @property
    def running(self) -> list[ServedModel]:
        """The models that are loaded."""
        return [one.serving for one in self.models.loaded]

    def ready(self, model: ServedModel) -> None:
        """The first model has been loaded."""
        self.models.entries[0].ready(model)
        if self.phase == "loading":
            self.phase = "ready"

    def find(self, name: str | None) -> Entry:
        """The loaded model that a request names, with or without its adapters.

        Raises Refusal: 404 for an unknown one, 503 while it is not loaded, or no more.
        """
        if self.phase == "draining":
            raise unavailable("the server is about to stop: ask another one", "draining")
        if self.phase == "failed":
            raise Refusal(503, "the model could not be loaded", code="failed")
        entry = self.models.find(name)
        self.models.want(entry)
        return entry

    def setting(self, entry: Entry) -> Setting:
        """What a request to a model is read against."""
        base = entry.serving.base
        return Setting(
            base=entry.name,
            alphas=entry.alphas,
            vocabulary=len(base.vocabulary),
            text_bytes=entry.text_bytes,
            sampling=self.sampling,
            base_prompt=self.base_prompt,
            chat_template=base.chat_template if self.base_prompt in (None, "gguf") else None,
            limits=self.limits,
        )

    async def prompt_tokens(self, entry: Entry, ask: Ask) -> int:
        """How many tokens the prompt of an ask has for the base model."""
        with entry.held() as model:
            async with self.heavy:
                return await asyncio.to_thread(model.count_prompt, ask)

    def health(self) -> str:
        """`ok`, or what keeps the server from answering.

        A busy model counts as stuck when two calls far enough apart saw it at the same step.
        """
        if self.phase != "ready":
            return self.phase
        found = [self._health(one) for one in self.models.loaded]
        return next((one for one in found if one != "ok"), "ok")

    def _health(self, entry: Entry) -> str:
        state = entry.serving.state
        if not state.alive:
            return "failed"
        still = self._still.get(entry.name)
        if not state.busy:
            self._still.pop(entry.name, None)
        elif still is None or still[0] != state.steps:
            self._still[entry.name] = state.steps, time.monotonic()
        elif time.monotonic() - still[1] > self.limits.stuck_seconds:
            return "stuck"
        return "ok"


def fingerprint(entry: Entry) -> str:
    """Changes with the program and with what is loaded."""
    told = f"{__version__} {entry.served_name}".encode()
    return "fp_" + hashlib.sha256(told).hexdigest()[:12]
