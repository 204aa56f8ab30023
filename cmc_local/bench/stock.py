"""The rivals: stock `llama_cpp.Llama`, plain, and with the `LogitsProcessor` one would write today.

`Llama.generate` cannot be told which token to take, so its loop is written out here: evaluate the
token, sample with the chain that it makes once a reply. The processor is given every advantage: it
shares the delta's cache with nobody, rolls back for free and never encodes again what it has
encoded; but it knows nothing of alignment, feeds one token a call, and runs the fp32 graph with
ONNX Runtime's default options, whose threads spin while llama.cpp's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from cmc_local.bench.arms import Arm, Place, Sample, Tokens, undisturbed
from cmc_local.bench.passages import Passage
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.delta.session import ort
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.token_map import TokenMap

REST = 0.1
"""Seconds until ONNX Runtime's threads have stopped spinning: the next arm is not to meet them."""


class Processor:
    """A `LogitsProcessor` that adds a delta's shift: `scores + alpha * shift[map]`."""

    def __init__(
        self,
        delta: OnnxDelta,
        tokenizer: DeltaTokenizer,
        token_map: TokenMap,
        alpha: float,
        texts: Sequence[bytes],
    ) -> None:
        """`texts` are the base's tokens as bytes."""
        self._delta = delta
        self._tokenizer = tokenizer
        self._index = token_map.index()  # "none" points one past the delta's vocabulary
        self._alpha = np.float32(alpha)
        self._texts = texts
        self._prompt: Tokens = ()
        self._prompt_row: NDArray[np.float32] | None = None
        self._row: NDArray[np.float32] | None = None  # (V_delta,) float32, what the delta says next
        self._seen = 0
        self.calls = 0
        self.error: Exception | None = None
        """`Llama` prints what goes wrong in a processor and goes on without the shift."""

    def begin(self, prompt: Tokens, seen: int) -> None:
        """Back to a prompt in the delta's tokens; `seen` of the base's are before the reply."""
        if prompt != self._prompt or self._prompt_row is None:
            self._delta.truncate(0, 0)
            self._prompt_row = self._delta.feed(0, prompt)[0].copy()
            self._prompt = prompt
        self._delta.truncate(0, len(prompt))
        self._row, self._seen, self.calls, self.error = self._prompt_row, seen, 0, None

    def __call__(self, ids: NDArray[np.intc], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(V_base,) float32 scores with the shift, after `ids`: all of the base's tokens so far."""
        try:
            self.calls += 1
            for token in ids[self._seen :]:
                self._follow(self._texts[token].decode("utf-8", "replace"))
            self._seen = len(ids)
            shifted: NDArray[np.float32] = scores + self._alpha * self._mapped()
            return shifted
        except Exception as error:
            self.error = error  # raised once the run is over
            return scores

    def _follow(self, text: str) -> None:
        for token in self._tokenizer.encode(text):
            if self._delta.length(0) == self._delta.context:
                self._delta.truncate(0, len(self._prompt))
            self._row = self._delta.feed(0, [token])[0]

    def _mapped(self) -> NDArray[np.float32]:
        assert self._row is not None
        return np.append(self._row, np.float32(0))[self._index]


class Stock:
    """`Llama` and what it writes passages with; not for builds with `has_risky_amx`."""

    def __init__(
        self, gguf: Path, context: int, batch: int, threads: int, gpu_layers: int = -1
    ) -> None:
        self._llama = llama_cpp.Llama(
            str(gguf),
            n_ctx=context,
            n_batch=batch,
            n_ubatch=batch,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=gpu_layers,
            verbose=False,
        )

    def write(self, passage: Passage, processor: Processor | None = None) -> Sample:
        """One timed run, as `arms.py` has it; greedy."""
        llama: Any = self._llama
        self._rewind(passage.prompt[:-1])
        processors = None if processor is None else llama_cpp.LogitsProcessorList([processor])
        llama._sampler = llama._init_sampler(temp=0.0, logits_processor=processors)
        written: list[int] = []
        begun = 0.0
        with undisturbed():
            for token, forced in zip(
                (passage.prompt[-1], *passage.reply), passage.reply, strict=False
            ):
                if len(written) == 1:
                    begun = perf_counter()
                llama.eval([token])
                llama.sample(temp=0.0, logits_processor=processors, idx=llama.n_tokens - 1)
                written.append(forced)
            seconds = perf_counter() - begun
        llama._sampler = None
        self._check(processor, len(written))
        return Sample(seconds, len(written) - 1, (tuple(written),))

    def close(self) -> None:
        """Free the model."""
        self._llama.close()

    def _rewind(self, tokens: Tokens) -> None:
        """Bring the cache to exactly these tokens, keeping what it shares with them."""
        llama: Any = self._llama
        held = llama.input_ids[: llama.n_tokens].tolist()
        pairs = zip(held, tokens, strict=False)
        kept = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(tokens)))
        if kept and llama._ctx.kv_cache_seq_rm(-1, kept, -1):
            llama.n_tokens = kept
        else:
            llama.reset()
        if rest := tokens[llama.n_tokens :]:
            llama.eval(rest)

    @staticmethod
    def _check(processor: Processor | None, steps: int) -> None:
        if processor is None:
            return
        if processor.error is not None:
            raise processor.error
        if processor.calls != steps:
            raise RuntimeError(f"the processor was called {processor.calls} times in {steps} steps")


class RivalArm:
    """Stock `Llama`, plain or with the processor."""

    def __init__(
        self,
        place: Place,
        stock: Stock,
        passage: Passage,
        processor: Processor | None = None,
        prompt: Tokens = (),
    ) -> None:
        """`prompt` is what the delta is asked, in its tokens."""
        self.place = place
        self._stock = stock
        self._passage = passage
        self._processor = processor
        self._prompt = prompt

    def run(self) -> Sample:
        if self._processor is None:
            return self._stock.write(self._passage)
        self._processor.begin(self._prompt, len(self._passage.prompt))
        sample = self._stock.write(self._passage, self._processor)
        sleep(REST)
        return sample


@dataclass(frozen=True)
class Naive:
    """What the processor is made of."""

    adapter: Path
    alpha: float
    prompt: Tokens
    """What the delta is asked, in its tokens."""


def rivals(stock: Sequence[Any], passage: Passage, naive: Naive | None) -> Callable[[Place], Arm]:
    """Both rivals on one `Llama`, for a process of their own; `stock` is what `Stock` is given.

    There nothing of ours is loaded before llama.cpp, whose threads do as they do elsewhere.
    """
    llama = Stock(*stock)

    def arm_of(place: Place) -> Arm:
        if place.kind == "stock":
            return RivalArm(place, llama, passage)
        assert naive is not None
        processor = _processor(stock[0], naive)
        return RivalArm(place, llama, passage, processor, naive.prompt)

    return arm_of


def _processor(gguf: Path, naive: Naive) -> Processor:
    from cmc_local.base.vocabulary import read_vocabulary

    folder = adapter.load(naive.adapter)
    delta, tokenizer = naive_delta(folder), DeltaTokenizer(folder.tokenizer_json)
    base = read_vocabulary(gguf)
    found = token_map.load_or_build(
        base, delta.vocabulary, encode=tokenizer.encode, tokenizer_sha256=tokenizer.sha256
    )
    return Processor(delta, tokenizer, found, naive.alpha, base.tokens)


def default_options(threads: int) -> Any:
    """ONNX Runtime's own options: as many threads as cores, and they spin."""
    return ort.SessionOptions()


def naive_delta(folder: Adapter) -> OnnxDelta:
    """The adapter's delta as one would open it without a thought: exact, with default options."""
    return OnnxDelta(folder, device="cpu", precision=folder.most_exact, options=default_options)
