"""SteeredModel: one GGUF model and the adapters that steer it - generate, stream, chat, score.

    messages --> model/requests.py -> base tokens, delta prompts -> engine/step.py --> tokens
    Piece, Completion <-- model/replies.py (whole characters, stop texts) <----'
    Score             <-- engine/scoring.py (texts that are given)

`stream` and `chat` write one reply at a time, in the first slot, whose caches live on from turn to
turn; `generate_many` writes `Limits.parallel` of them at once. Both step one `model/batching.py`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.lora import LoraLike
from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.base.threads import leaves_a_core, usual_delta_threads
from cmc_local.engine.scoring import Passage, Score
from cmc_local.engine.slots import Base, Slot
from cmc_local.engine.step import Engine
from cmc_local.engine.timings import StepTimes
from cmc_local.errors import UsageError
from cmc_local.lifetime import Closing, free_unused, trim_heap
from cmc_local.model.batching import Batch, Sampler
from cmc_local.model.replies import Completion, Piece, completion
from cmc_local.model.requests import Ask, Request, RequestMaker
from cmc_local.model.scores import Scoring
from cmc_local.settings import OLD_DRAFTS, Control, Limits, Overlap, Sampling, Speculate, drafts
from cmc_local.steer.loaded_adapter import AdapterLoader, LoadedAdapter
from cmc_local.steer.strengths import Alphas, check_alpha, free_name, strengths
from cmc_local.text.base_prompt import (
    BasePrompt,
    BasePromptForm,
    Prompt,
    TextModel,
    as_messages,
    continuation_tokens,
    fit,
)
from cmc_local.text.history import read_history
from cmc_local.text.prompts import Message

__all__ = ["Alphas", "Completion", "Piece", "Prompt", "Score", "SteeredModel"]

AdapterLike = str | Path | tuple[str | Path, float | None]
"""A folder, or (folder, alpha); alpha None is the adapter's own."""


class BaseWithText(Base, TextModel, Protocol):
    """A base model that decodes and tokenises; `BaseModel` is one."""

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


class SteeredModel(Scoring, Closing):
    """A loaded base model and its adapters; a context manager, or `close` it."""

    def __init__(
        self,
        base: BaseWithText,
        make_sampler: Callable[[Sampling], Sampler],
        *,
        loader: Callable[[str | Path], LoadedAdapter] | None = None,
        limits: Limits | None = None,
        overlap: Overlap = "auto",
        drafts: int = 0,
        spare_core: bool = True,
    ) -> None:
        """From parts; `load` is the usual way. `drafts` tokens are drafted for a step, 0 for none.

        `spare_core` says whether the base model leaves a core to the deltas.
        """
        limits = limits or Limits()
        self.base = base
        self.adapters: dict[str, LoadedAdapter] = {}
        self._alphas: dict[str, float] = {}
        self._make_sampler = make_sampler
        self._loader = loader
        self._engine = Engine(base, batch=limits.batch, overlap=overlap, spare_core=spare_core)
        self._batch = limits.batch
        self._slots = tuple(Slot(sequence) for sequence in range(limits.parallel))
        self._drafts = drafts
        self._busy = threading.Lock()
        self._busy_thread: int | None = None

    @classmethod
    def load(
        cls,
        gguf: str | Path,
        adapters: Sequence[AdapterLike] = (),
        *,
        control: Control | None = None,
        limits: Limits | None = None,
        delta_device: str = "auto",
        gpu_layers: int = -1,
        threads: int | None = None,
        delta_threads: int | None = None,
        overlap: Overlap = "auto",
        speculate: Speculate = 0,
        loras: Sequence[LoraLike] = (),
        rpc: Sequence[str] = (),
    ) -> SteeredModel:
        """Load a GGUF file and the adapters that steer it, each a folder or (folder, alpha).

        `overlap` runs the deltas beside the base model, `auto` where that leaves them a core;
        `speculate` drafts so many tokens a step from what was said before, 0 none (it pays where
        replies repeat their prompts: extraction, corrections, code);
        `loras` are LoRA files (GGUF) that change the base model itself, with their scales;
        `rpc` are llama.cpp's servers on other machines that take a part of its layers.
        """
        limits = limits or Limits()
        base = BaseModel(
            gguf,
            context=limits.context,
            batch=limits.batch,
            gpu_layers=gpu_layers,
            threads=threads,
            sequences=limits.parallel,
            loras=loras,
            rpc=rpc,
        )
        loader = AdapterLoader(
            base.vocabulary,
            control or Control(),
            device=delta_device,
            threads=delta_threads or usual_delta_threads(base.threads),
            sequences=limits.parallel,
        )
        model = cls(
            base,
            partial(NativeSampler, base),
            loader=loader,
            limits=limits,
            overlap=overlap,
            drafts=_drafts(speculate),
            spare_core=leaves_a_core(base.threads),
        )
        try:
            for one in adapters:
                model.add(*one) if isinstance(one, tuple) else model.add(one)
        except BaseException:
            model.close()
            raise
        return model

    def add(self, folder: str | Path, alpha: float | None = None) -> str:
        """Load one more adapter, which acts from the next reply on; its name in this model."""
        return self.attach(self.load_adapter(folder), alpha)

    def attach(self, adapter: LoadedAdapter, alpha: float | None = None) -> str:
        """Let a loaded adapter act from the next reply on; its name in this model."""
        alpha = check_alpha(adapter.alpha if alpha is None else alpha)
        name = free_name(adapter.name, self.adapters)
        self._alphas = {**self._alphas, name: alpha}
        self.adapters[name] = replace(adapter, name=name)
        trim_heap()
        return name

    @property
    def alphas(self) -> Mapping[str, float]:
        """Each adapter's strength where a request says nothing; 0 is off."""
        return MappingProxyType(self._alphas)

    def set_alpha(self, name: str, alpha: float) -> None:
        """Change an adapter's strength, from the next reply on."""
        self._alphas = strengths(self._alphas, {name: alpha})

    def load_adapter(self, folder: str | Path) -> LoadedAdapter:
        """An adapter made ready for this model; any thread may do so, `attach` is the owner's."""
        if self._loader is None:
            raise UsageError("this model was made without a loader: attach loaded adapters")
        return self._loader(folder)

    def remove(self, name: str) -> None:
        """Let go of an adapter; replies under way keep it to their end."""
        strengths(self._alphas, {name: 0.0})  # refuses a name that nobody knows
        del self.adapters[name]
        self._alphas = {one: alpha for one, alpha in self._alphas.items() if one != name}
        free_unused()

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Completion:
        """The whole reply to a question or a conversation."""
        return completion(self.stream(prompt, sampling, alphas=alphas, base_prompt=base_prompt))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Completion:
        """The reply to a conversation; what the caches still hold of it is not decoded again."""
        return self.generate(messages, sampling, alphas=alphas, base_prompt=base_prompt)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """The reply as it comes; `cancelled` is asked before every step and ends it when true."""
        request = self._request(prompt, sampling, alphas, base_prompt)
        return self._stream(request, cancelled)

    def _stream(self, request: Request, cancelled: Callable[[], bool] | None) -> Iterator[Piece]:
        with self.alone():
            batch = Batch(self._engine, self._slots[:1], self._make_sampler)
            try:
                number = batch.submit(request)
                while batch.active:
                    if cancelled is not None and cancelled():
                        batch.cancel(number)
                    for _, piece in batch.step():
                        if isinstance(piece, UsageError):
                            raise piece
                        yield piece
            finally:
                batch.clear()

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling | None = None,
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """The replies to many prompts, `Limits.parallel` at once; (its number, reply) as they end.

        Prompts are taken from the iterable as slots become free.
        """
        with self.alone():
            batch = self.batch()
            numbered = enumerate(prompts)
            pieces: dict[int, list[Piece]] = {}
            try:
                while True:
                    while batch.free and (found := next(numbered, None)) is not None:
                        number, prompt = found
                        request = self._request(prompt, sampling, alphas, base_prompt)
                        assert batch.submit(request) == number
                        pieces[number] = []
                    if not pieces:
                        return
                    for number, piece in batch.step():
                        if isinstance(piece, UsageError):
                            raise piece
                        pieces[number].append(piece)
                        if piece.finish_reason is not None:
                            yield number, completion(pieces.pop(number))
            finally:
                batch.clear()

    @contextmanager
    def passage(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        alphas: Alphas | None = None,
        base_prompt: BasePrompt | None = None,
    ) -> Iterator[Passage]:
        """A continuation of a prompt, to be scored; no reply can be written meanwhile."""
        history, maker = read_history(as_messages(prompt)), self._maker
        acting = maker.active(alphas)
        form = maker.form(base_prompt, acting)
        fitted = fit(self.base, form, history, context=self.base.n_ctx, reserve=1)
        tokens = (
            continuation_tokens(self.base, fitted.prompt, fitted.tokens, continuation)
            if isinstance(continuation, str)
            else list(continuation)
        )
        if not tokens:
            raise UsageError("the continuation is empty: give at least one token of text")
        begun = history.begun.encode("utf-8", "replace")
        active = [one.active(alpha, one.prompt(history.folded), begun) for one, alpha in acting]
        with self.alone():
            yield Passage(self._engine, self._slots[0], fitted.tokens, tokens, active, self._batch)

    def close(self) -> None:
        """Free the models; a reply under way ends with an error."""
        self._engine.close()
        self.adapters.clear()
        self.base.close()

    # --- for whoever runs a batch of its own --------------------------------------------------

    def request(self, ask: Ask) -> Request:
        """What it takes to write what is asked, with the adapters as they are now.

        Any thread may call it. Raises UsageError and PromptTooLong where the ask cannot be met.
        """
        return self._maker.make(ask)

    def base_prompt_form(self, kind: BasePrompt | None = None) -> BasePromptForm:
        """How conversations become the base model's prompt."""
        maker = self._maker
        return maker.form(kind, maker.active(None))

    def _request(
        self,
        prompt: Prompt,
        sampling: Sampling | None,
        alphas: Alphas | None,
        base_prompt: BasePrompt | None,
    ) -> Request:
        sampling, messages = sampling or Sampling(), as_messages(prompt)
        return self.request(
            Ask(prompt=messages, sampling=sampling, alphas=alphas, base_prompt=base_prompt)
        )

    @property
    def _maker(self) -> RequestMaker:
        adapters, alphas = dict(self.adapters), dict(self._alphas)
        return RequestMaker(self.base, self.base.n_ctx, adapters, alphas, self._drafts)

    def batch(self, *, step_seconds: float | None = None) -> Batch:
        """A batch on this model's slots, to be stepped while `alone`.

        With `step_seconds` a long prompt is decoded in parts of about that length.
        """
        self._engine.step_seconds = step_seconds
        return Batch(self._engine, self._slots, self._make_sampler)

    def sampler(self, sampling: Sampling) -> Sampler:
        """A sampler for one reply; UsageError where a grammar or schema cannot be used."""
        return self._make_sampler(sampling)

    @property
    def times(self) -> StepTimes:
        """Where the time of all steps so far went."""
        return self._engine.times

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One reply at a time; other threads wait, this one would wait for ever."""
        me = threading.get_ident()
        if self._busy_thread == me:
            raise UsageError("a reply is under way: read its stream to the end or close it first")
        self._busy.acquire()
        self._busy_thread = me
        try:
            yield
        finally:
            self._busy_thread = None
            self._busy.release()


def _drafts(speculate: Speculate) -> int:
    if speculate in ("on", "auto"):
        warnings.warn(
            f"speculate={speculate!r} is an old word for {OLD_DRAFTS}: give the number of drafts",
            FutureWarning,
            stacklevel=3,
        )
    return drafts(speculate)
