"""What the arms need, loaded as `SteeredModel.load` loads it, and what it adds to the memory.

base     one sequence; and a second one for several sequences at once, since rows of other
         sequences in the same cache would slow down the one
adapter  one delta, slot 0 for the one sequence, the others for those at once
rivals   in processes of their own, if they are asked for
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.base.threads import leaves_a_core, usual_delta_threads
from cmc_local.bench.apart import Apart, ArmOf
from cmc_local.bench.arms import Tokens
from cmc_local.bench.machine import megabytes
from cmc_local.bench.memory import Memory
from cmc_local.bench.passages import Passage
from cmc_local.delta import adapter as adapter_folder
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.lifetime import Closing
from cmc_local.settings import Control, Overlap, Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter, ready
from cmc_local.steer.steering import ActiveAdapter
from cmc_local.text import token_map
from cmc_local.text.alignment import Aligner
from cmc_local.text.delta_tokenizer import DeltaPrompt, DeltaTokenizer

Closed = TypeVar("Closed", Engine, Apart)
BATCH = 512
"""Prompt tokens that one `llama_decode` takes, in every arm."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What to load, and on how many threads."""

    gguf: Path
    adapter: Path | None = None
    alpha: float | None = None
    """None is the adapter's own."""
    context: int
    """Tokens of the base's context, in every arm."""
    parallel: int = 1
    threads: int | None = None
    delta_threads: int | None = None
    delta_device: str = "auto"
    gpu_layers: int = -1


class Models(Closing):
    """The models of one measurement; a context manager."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._stack = ExitStack()
        self._engines: dict[tuple[int, Overlap], Engine] = {}
        self._apart: dict[Callable[..., ArmOf], Apart] = {}
        self.memory = Memory()
        with self.memory.adding("base"):
            self.base = self._base(1)
            self.base.decode([0], start=0)
            self.base.clear(0)
        self.slot = Slot(0)
        self.adapter: LoadedAdapter | None = None
        self.seconds: dict[str, float] = {}
        """Of the base's vocabulary and of the token map, both made anew."""
        self.delta_threads = loading.delta_threads or usual_delta_threads(self.base.threads)
        if loading.adapter is not None:
            self.adapter = self._load_adapter(loading.adapter)

    def engine(self, overlap: Overlap = "auto", *, many: bool = False) -> Engine:
        """One engine for each mode, kept with its thread."""
        base = self.many if many else self.base
        key = (id(base), overlap)
        if key not in self._engines:
            spare_core = leaves_a_core(base.threads)
            engine = Engine(base, batch=BATCH, overlap=overlap, spare_core=spare_core)
            self._engines[key] = self._closing(engine)
        return self._engines[key]

    def sampler(self, *, many: bool = False) -> Callable[[], NativeSampler]:
        """What makes greedy samplers."""
        return partial(NativeSampler, self.many if many else self.base, Sampling(temperature=0.0))

    def active(self, passage: Passage, *, many: bool = False) -> tuple[ActiveAdapter, ...]:
        """The adapter asked what the passage's prompt asks; for `many` on slots of their own."""
        adapter = self._adapter
        if many:
            adapter = replace(adapter, steerings=adapter.steerings[1:])
        return (adapter.active(self.alpha, self._asked(passage)),)

    def delta_prompt(self, passage: Passage) -> Tokens:
        """What the delta is asked, in its tokens."""
        return tuple(Aligner(self._adapter.tokenizer, self._asked(passage)).tokens)

    @property
    def alpha(self) -> float:
        alpha = self.loading.alpha
        return self._adapter.alpha if alpha is None else alpha

    @cached_property
    def many(self) -> BaseModel:
        """The base again, for several sequences at once."""
        with self.memory.adding("base_for_many"):
            return self._base(self.loading.parallel)

    @cached_property
    def many_slots(self) -> tuple[Slot, ...]:
        """A slot for each sequence of `many`."""
        return tuple(Slot(i) for i in range(self.loading.parallel))

    def apart(self, make: Callable[..., ArmOf], *arguments: Any) -> Apart:
        """The process that holds what `make` makes of these; the same for the same function."""
        if make not in self._apart:
            self._apart[make] = self._closing(Apart(make, *arguments))
        return self._apart[make]

    def describe_adapter(self) -> dict[str, Any] | None:
        """The adapter as the report names it."""
        if self.adapter is None or self.loading.adapter is None:
            return None
        source: Any = self.adapter.source
        graph = adapter_folder.load(self.loading.adapter).graph(source.precision)
        return {
            "name": self.adapter.name,
            "precision": source.precision,
            "mb": megabytes(graph.stat().st_size),
            "device": source.device,
            "vocabulary": len(source.vocabulary),
            "context": source.context,
            "alpha": self.alpha,
            **{name: round(spent, 4) for name, spent in self.seconds.items()},
        }

    def close(self) -> None:
        """Free the models; more than once is fine."""
        self._stack.close()

    @property
    def _adapter(self) -> LoadedAdapter:
        assert self.adapter is not None
        return self.adapter

    def _asked(self, passage: Passage) -> DeltaPrompt:
        return self._adapter.prompt([{"role": "user", "content": passage.question}])

    def _closing(self, one: Closed) -> Closed:
        self._stack.callback(one.close)
        return one

    def _base(self, sequences: int) -> BaseModel:
        loading = self.loading
        return self._stack.enter_context(
            BaseModel(
                loading.gguf,
                context=loading.context,
                batch=BATCH,
                gpu_layers=loading.gpu_layers,
                threads=loading.threads,
                sequences=sequences,
            )
        )

    def _load_adapter(self, path: Path) -> LoadedAdapter:
        """As `AdapterLoader`, with the session's memory apart."""
        with self.memory.adding("onnxruntime"):
            from cmc_local.delta.onnx_delta import OnnxDelta
        folder = adapter_folder.load(path)
        tokenizer = DeltaTokenizer(folder.tokenizer_json)
        begun = perf_counter()
        base = self.base.vocabulary
        read = perf_counter()
        token_map.build(base, tokenizer.vocabulary, encode=tokenizer.encode)
        self.seconds = {"vocabulary_s": read - begun, "map_s": perf_counter() - read}
        slots = 1 if self.loading.parallel == 1 else 1 + self.loading.parallel
        with self.memory.adding("delta"):
            source = OnnxDelta(
                folder,
                device=self.loading.delta_device,
                threads=self.delta_threads,
                slots=slots,
            )
        settings = folder.settings
        return ready(
            source,
            tokenizer,
            base,
            Control(),
            name=settings.name,
            alpha=settings.alpha,
            form=settings.prompt,
            turns=settings.turns,
        )
