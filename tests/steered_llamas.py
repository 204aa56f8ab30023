"""Stock and steered `Llama`s of the bundled models, and what `SteeredModel` says there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LogitsProcessorList
from numpy.typing import NDArray

from cmc_local import Limits, Sampling, SteeredModel
from cmc_local.integrations.llama_cpp import LlamaSteering, SteeredLlama

QUESTIONS = (
    "In which town was Anna Westgate born?",
    "What does Flora Whitemark write?",
    "Can you tell me where Anna Westgate lives?",
)
QUESTION = QUESTIONS[0]
PROMPT = f"<|user|>\n{QUESTION}\n<|assistant|>\n"  # instruct's form
CONTEXT, MOST = 512, 24
SHORT = 'root ::= "Anna" | "Flora" | "No"'

Ids, Scores = NDArray[np.intc], NDArray[np.float32]


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def opened(models: Path, name: str = "template", **settings: Any) -> Any:
    settings = {"n_ctx": CONTEXT, "n_threads": 1, "verbose": False, **settings}
    return Llama(str(models / f"{name}.gguf"), **settings)


def steered(models: Path, name: str = "template", **settings: Any) -> SteeredLlama:
    settings = {"n_ctx": CONTEXT, "n_threads": 1, "verbose": False, **settings}
    adapters = settings.pop("adapters", [models / "instruct"])
    gguf = models / f"{name}.gguf"
    return SteeredLlama(gguf, adapters=adapters, delta_device="cpu", **settings)


def chat(llm: Any, question: str = QUESTION, **settings: Any) -> str:
    settings = {"temperature": 0, "max_tokens": MOST, **settings}
    reply = llm.create_chat_completion(ask(question), **settings)
    return str(reply["choices"][0]["message"]["content"])


def complete(llm: Any, processors: Any = None, prompt: str = PROMPT, **settings: Any) -> str:
    settings = {"temperature": 0, "max_tokens": MOST, **settings}
    reply = llm.create_completion(prompt, logits_processor=processors, **settings)
    return str(reply["choices"][0]["text"])


@cache
def expected(models: Path, name: str, question: str, grammar: str | None = None) -> str:
    """What `SteeredModel` says."""
    sampling = Sampling(temperature=0, max_tokens=MOST, grammar=grammar)
    settings = {"delta_device": "cpu", "gpu_layers": 0, "threads": 1, "speculate": 0}
    limits = Limits(context=CONTEXT)
    gguf = models / f"{name}.gguf"
    with SteeredModel.load(gguf, [models / "instruct"], limits=limits, **settings) as model:
        return model.generate(question, sampling).text


class Seen:
    """A processor that keeps the scores it is given."""

    def __init__(self) -> None:
        self.rows: list[Scores] = []

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        self.rows.append(scores.copy())
        return scores


def first_scores(llm: Any, **settings: Any) -> Scores:
    """What the first token is chosen from, (V_base,) float32."""
    seen = Seen()
    settings = {"question": QUESTION, "max_tokens": 1, **settings}
    llm.create_completion(PROMPT, logits_processor=LogitsProcessorList([seen]), **settings)
    return seen.rows[0]


def fail_at(monkeypatch: pytest.MonkeyPatch, steering: LlamaSteering, call: int) -> None:
    """Let the delta fail when it is fed for the `call`th time, with the tokens half taken in."""
    source = steering.adapters["instruct"].source
    feed, calls = source.feed_many, iter(range(1, 1000))

    def feed_many(feeds: Sequence[Any]) -> Any:
        rows = feed(feeds)
        if next(calls) == call:
            raise MemoryError("no room for the delta")
        return rows

    monkeypatch.setattr(source, "feed_many", feed_many)
