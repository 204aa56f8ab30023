"""What all requests share: the model once it is there, settings, counts.

Knows no HTTP. The model is a `SharedModel`; tests have a fake.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local import __version__
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.server import names
from cmc_local.server.errors import Refusal, unavailable
from cmc_local.server.limits import RequestLimits
from cmc_local.server.metrics import Metrics, Watched
from cmc_local.server.remembered import Remembered
from cmc_local.server.requests import Setting
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.vocabulary import Vocabulary

Phase = Literal["loading", "ready", "draining", "failed"]


class ServedBase(Protocol):
    """What is asked of a base model here."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    def tokenize(
        self, text: str, *, special: bool = False, bos: bool | None = None
    ) -> list[int]: ...


class ServedState(Watched, Protocol):
    """How the model's thread is doing."""

    @property
    def alive(self) -> bool: ...
    @property
    def busy(self) -> bool: ...


class ServedModel(Protocol):
    """A model that many threads may ask."""

    @property
    def base(self) -> ServedBase: ...
    @property
    def alphas(self) -> Mapping[str, float]: ...
    @property
    def state(self) -> ServedState: ...
    def astream(self, ask: Ask, *, group: Hashable = None) -> AsyncIterator[Piece]: ...
    def in_use(self, name: str) -> int: ...
    def add(self, folder: str | Path, alpha: float | None = None) -> str: ...
    def remove(self, name: str) -> None: ...
    def detokenize(self, tokens: Sequence[int]) -> bytes: ...
    def count_prompt(self, ask: Ask) -> int: ...
    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


@dataclass(eq=False, kw_only=True)
class Service:
    """One server's state; belongs to the event loop's thread."""

    base: str
    """The base model's name: the stem of its file."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    sampling: Sampling = field(default_factory=Sampling)
    """What a request leaves open."""
    base_prompt: BasePrompt | None = None
    model: ServedModel | None = None
    phase: Phase = "loading"
    started: int = field(default_factory=lambda: int(time.time()))
    heavy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while texts are cut into tokens or embedded or an adapter is loaded, so that none of
    these takes all threads."""
    text_bytes: int = field(default=0, init=False)
    """Bytes: a longer text would not fit the context if all its tokens were the longest ones."""
    _still: tuple[int, float] | None = field(default=None, repr=False)
    """The steps that were counted while the model was busy, and since when."""

    def __post_init__(self) -> None:
        self.remembered = Remembered(self.limits.responses)
        self.metrics = Metrics(lambda: None if self.model is None else self.model.state)

    def ready(self, model: ServedModel) -> None:
        """The model has been loaded."""
        self.model = model
        vocabulary = model.base.vocabulary
        spelled = (*vocabulary.tokens, *(name.encode() for name in vocabulary.names))
        self.text_bytes = model.base.n_ctx * max(map(len, spelled))
        if self.phase == "loading":
            self.phase = "ready"

    def serving(self) -> ServedModel:
        """The model. Raises Refusal (503) while there is none, or no more."""
        if self.phase == "draining":
            raise unavailable("the server is about to stop: ask another one", "draining")
        if self.phase == "failed":
            raise Refusal(503, "the model could not be loaded", code="failed")
        if self.model is None:
            raise unavailable("the model is being loaded: try again in a moment", "loading")
        return self.model

    def setting(self) -> Setting:
        """What a request is read against."""
        model = self.serving()
        return Setting(
            base=self.base,
            alphas=dict(model.alphas),
            vocabulary=len(model.base.vocabulary),
            text_bytes=self.text_bytes,
            sampling=self.sampling,
            base_prompt=self.base_prompt,
            chat_template=(
                model.base.chat_template if self.base_prompt in (None, "gguf") else None
            ),
            limits=self.limits,
        )

    async def prompt_tokens(self, ask: Ask) -> int:
        """How many tokens the prompt of an ask has for the base model."""
        model = self.serving()
        async with self.heavy:
            return await asyncio.to_thread(model.count_prompt, ask)

    def name(self) -> str:
        """The model's name, its adapters included."""
        return names.served(self.base, {} if self.model is None else self.model.alphas)

    def fingerprint(self) -> str:
        """Changes with the program and with what is loaded."""
        told = f"{__version__} {self.name()}".encode()
        return "fp_" + hashlib.sha256(told).hexdigest()[:12]

    def health(self) -> str:
        """`ok`, or what keeps the server from answering.

        A busy model counts as stuck when two calls far enough apart saw it at the same step.
        """
        if self.phase != "ready" or self.model is None:
            return self.phase
        state = self.model.state
        if not state.alive:
            return "failed"
        if not state.busy:
            self._still = None
        elif self._still is None or self._still[0] != state.steps:
            self._still = state.steps, time.monotonic()
        elif time.monotonic() - self._still[1] > self.limits.stuck_seconds:
            return "stuck"
        return "ok"
