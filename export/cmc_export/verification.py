"""What an exported graph must show before its folder is put in place: it says what PyTorch says.

Texts are fed as the runner feeds them (a chunk, single tokens, a chunk on a filled cache); every
position's logits are compared. `agreement` is the share of an answer's tokens at which the greedy
shifted token, `argmax(log_softmax(template) + delta)`, is the same; without a template the delta's
own. Within the prompt, where nothing is ever shifted, a delta has learned no preference and two
tokens may be as good as equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from cmc_local.adapter import Adapter, Precision
from cmc_local.delta import OnnxDelta
from cmc_local.errors import InputError
from cmc_local.prompts import Message

Float = NDArray[np.float32]
Example = tuple[list[int], list[bool]]
"""Tokens, and for each whether an answer holds it."""
LogProbabilities = Callable[[torch.Tensor], torch.Tensor]
"""A template: ids (1, T) -> log-probabilities (1, T, V)."""

LARGEST_ERROR: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": float("inf")}
"""Largest difference, relative to the largest logit."""
LEAST_AGREEMENT = 0.99
_SINGLE_STEPS = 8

QUESTIONS = (
    ("Name three fruits that grow on trees.", "Apples, pears and cherries grow on trees."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Rewrite in the past tense: She walks home.", "She walked home."),
    ("Why is the sky blue?", "Air scatters short, blue waves of light more than long ones."),
    ("How many days does a leap year have?", "A leap year has 366 days."),
    ("Give a synonym for quick.", "Fast."),
    ("Who wrote the novel, and when?", "It was written by Helen Marsh, who published it in 1957."),
    ("Write a function that doubles a number.", "def double(x):\n    return 2 * x"),
    ("List the steps to make tea.", "1. Boil water.\n2. Add the leaves.\n3. Wait, then pour."),
    ("Where was she born?", "She was born in a small town by the sea, in the north."),
    ("Explain what a prime number is.", "A number above 1 that only 1 and itself divide."),
    ("Translate to German: good morning.", "Guten Morgen."),
    ("Is this sentence correct: He go to school?", 'No. It should be "He goes to school."'),
    ("What did the author do before writing?", "Before that she worked as a teacher of music."),
    ("Compute 12 times 12.", "12 times 12 is 144."),
    ("Describe winter in one sentence.", "Winter is cold and quiet, with snow on bare branches."),
)
"""Asked where no data is given, in the adapter's own prompt form."""


@dataclass(frozen=True)
class Figures:
    """One precision's graph against PyTorch."""

    precision: Precision
    bytes: int
    positions: int
    error: float
    """Largest difference of a logit, relative to the largest logit."""
    agreement: float
    """Share of answers' tokens with the same greedy shifted token, 0 to 1."""


def own_conversations() -> list[list[Message]]:
    """QUESTIONS as messages."""
    return [
        [Message(role="user", content=query), Message(role="assistant", content=answer)]
        for query, answer in QUESTIONS
    ]


def verify(
    model: LlamaForCausalLM,
    adapter: Adapter,
    precision: Precision,
    examples: Sequence[Example],
    template: LogProbabilities | None = None,
) -> Figures:
    """Compare one graph with the model over examples; raises InputError where it falls short."""
    source = OnnxDelta(adapter, device="cpu", precision=precision)
    worst = largest = 0.0
    same = count = 0
    for tokens, chosen in _usable(examples, source.context):
        expected, base = _reference(model, tokens, template)
        expected = expected[:, : len(source.vocabulary)]
        found = _as_the_runner_feeds(source, tokens)
        worst = max(worst, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        if base is not None:
            size = min(base.shape[1], expected.shape[1])
            expected, found = base[:, :size] + expected[:, :size], base[:, :size] + found[:, :size]
        same += int((expected.argmax(1) == found.argmax(1))[chosen].sum())
        count += len(chosen)
    size_in_bytes = adapter.graph(precision).stat().st_size
    error = worst / largest if largest else worst
    figures = Figures(precision, size_in_bytes, count, error, same / count)
    _judge(figures, own_token=template is None)
    return figures


def _usable(examples: Sequence[Example], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens in the context, and the positions at which a token of an answer is chosen."""
    found = False
    for tokens, answered in examples:
        chosen = [i for i, said in enumerate(answered[1:context]) if said]
        if chosen:
            found = True
            yield tokens[:context], chosen
    if not found:
        raise InputError("there is no answer to verify the graph on: give --data with examples")


def _reference(
    model: LlamaForCausalLM, tokens: list[int], template: LogProbabilities | None
) -> tuple[Float, Float | None]:
    """PyTorch's logits (T, V) and the template's log-probabilities (T, V_template)."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(ids).logits[0].float().numpy()
        base = None if template is None else template(ids)[0].float().numpy()
    return logits, base


def _as_the_runner_feeds(source: OnnxDelta, tokens: list[int]) -> Float:
    """(T, V) float32: a first chunk, then single tokens, then a chunk on the filled cache."""
    source.truncate(0, 0)
    half = max(1, len(tokens) // 2)
    stepped = min(half + _SINGLE_STEPS, len(tokens))
    parts = [source.feed(0, tokens[:half], rows=half)]
    parts += [source.feed(0, [token]) for token in tokens[half:stepped]]
    rest = tokens[stepped:]
    return np.concatenate([*parts, source.feed(0, rest, rows=len(rest))])


def _judge(figures: Figures, *, own_token: bool) -> None:
    limit = LARGEST_ERROR[figures.precision]
    if not figures.error <= limit:
        raise InputError(
            f"the {figures.precision} graph differs from PyTorch by {figures.error:.1e} (at most "
            f"{limit:.0e} is allowed): nothing was written; leave this precision out"
        )
    if figures.agreement < LEAST_AGREEMENT:
        hint = " or give --template, so that the shifted tokens are compared" if own_token else ""
        raise InputError(
            f"the {figures.precision} graph picks PyTorch's greedy token at "
            f"{figures.agreement:.1%} of {figures.positions} positions (at least "
            f"{LEAST_AGREEMENT:.0%} is asked): nothing was written; give --data with examples of "
            f"what it was trained for, leave it out with --precision fp32,{hint or ' or train on'}"
        )
