"""What an exported graph must show before its folder is put in place: it does what PyTorch does.

Texts are fed as the runner feeds them (a chunk, single tokens, a chunk on a filled cache). All
logits are compared, and, where an answer's tokens are chosen, the distribution that they make:

    steered = softmax(template + mapped delta)          KL(by PyTorch || by the graph), in nats

The delta's logits go to the template's tokens as at run time, by the token map with its fill; a
template of the delta's own vocabulary takes them as they are. Without a template the delta's own
distribution is compared, which it never had to get right: where the template is sure, training has
left the delta free. Within the prompt, where nothing is shifted, nothing is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from cmc_export.examples import Row
from cmc_export.templates import Template
from cmc_local.delta.adapter import Adapter, Precision
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import InputError
from cmc_local.steer.control import MappedShift, Shift, add_shifts
from cmc_local.text.prompts import Message

Float = NDArray[np.float32]
Double = NDArray[np.float64]

LARGEST_ERROR: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest difference, relative to the largest logit; any for integers, whose KL is judged."""
# Measured on a delta of 2.6M, trained on instructions beside SmolLM2; in brackets in its own
# distribution, where nothing is sure. From PyTorch it is in 8 bits 0.00007 nats (0.0004), in 4 bits
# 0.0058 (0.041), while steering gains 0.1 nats and more. Another greedy token: 8 bits at 0.2 % of
# positions (2.1 %), 4 bits at 2.5 % (23 %); where that is no tie: 0 (0.1 %), 1.4 % (18 %).
LARGEST_KL = 0.005
LEAST_AGREEMENT = 0.99
TIE = 0.1
"""Nats between two tokens that are as good as equally likely: one of them 0.9 times the other."""
MOST_POSITIONS = 1000
"""Each takes some 80 ms for two graphs beside a template of 262,144 tokens."""
MOST_PLACES = 64
"""Positions of one example, evenly spread: a template's rows may take a megabyte each."""
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
    kl: float
    """Mean KL(by PyTorch || by the graph) of the compared distributions, nats a position."""
    agreement: float
    """Share of positions with the same greedy token, 0 to 1."""
    agreement_or_tie: float
    """The same, where a token that PyTorch finds less likely by at most TIE nats counts too."""
    beside: str = ""
    """The template whose steered distributions were compared; empty for the delta's own."""


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation; entry n of `places` and of `template_places` are the same place."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    """Positions in `tokens` after which an answer's token is chosen."""
    template_tokens: tuple[int, ...]
    template_places: tuple[int, ...]


@dataclass(frozen=True)
class Ground:
    """A template that the delta is compared on."""

    template: Template
    mapped: MappedShift | None
    """To its vocabulary; None where that is the delta's own."""

    def log_probabilities(self, case: Case) -> Float:
        """(places, V_template) float32."""
        end = case.template_places[-1] + 1
        keep = torch.zeros(1, end, dtype=torch.bool)
        keep[0, list(case.template_places)] = True
        found: Float = self.template(torch.tensor([case.template_tokens[:end]]), keep).numpy()
        return found

    def steered(self, base: Float, delta: Float) -> Float:
        """One row (V_template,) after the delta's logits (V_delta,)."""
        if self.mapped is None:
            size = min(len(base), len(delta))
            return base[:size] + delta[:size]
        row = base.copy()
        add_shifts(row, [Shift(self.mapped, delta, 1.0)])
        return row


def own_conversations() -> list[list[Message]]:
    """QUESTIONS as messages."""
    return [
        [Message(role="user", content=query), Message(role="assistant", content=answer)]
        for query, answer in QUESTIONS
    ]


def case(row: Row) -> Case:
    """A training row as a case, beside its first template if it has one."""
    view = row.views[0] if row.views else None
    if view is None:
        places = tuple(i for i, said in enumerate(row.in_loss[1:]) if said)
        return _thinned(Case(row.ids, places, row.ids, places))
    return _thinned(Case(row.ids, view.delta_places, view.ids, view.places))


def _thinned(whole: Case) -> Case:
    step = max(1, math.ceil(len(whole.places) / MOST_PLACES))
    return Case(
        whole.tokens, whole.places[::step], whole.template_tokens, whole.template_places[::step]
    )


def verify(
    model: LlamaForCausalLM,
    adapter: Adapter,
    cases: Sequence[Case],
    ground: Ground | None = None,
) -> list[Figures]:
    """Compare every graph of an adapter with the model; raises InputError where one falls short.

    Goes case by case, so that a template's rows are in memory for one case at a time.
    """
    graphs = {p: OnnxDelta(adapter, device="cpu", precision=p) for p in adapter.precisions}
    tallies = {p: _Tally() for p in graphs}
    count = 0
    for one in cases:
        if not one.places or count >= MOST_POSITIONS:
            continue
        count += len(one.places)
        _compare(model, graphs, tallies, one, ground)
    if not count:
        raise InputError("there is no answer to verify the graph on: give --data with examples")
    beside = "" if ground is None else ground.template.name
    figures = [
        tally.figures(p, adapter.graph(p).stat().st_size, beside) for p, tally in tallies.items()
    ]
    judge(figures)
    return figures


def _compare(
    model: LlamaForCausalLM,
    graphs: dict[Precision, OnnxDelta],
    tallies: dict[Precision, _Tally],
    one: Case,
    ground: Ground | None,
) -> None:
    expected = _reference(model, one.tokens)
    found = {p: _as_the_runner_feeds(source, one.tokens) for p, source in graphs.items()}
    base = None if ground is None else ground.log_probabilities(one)
    for p, logits in found.items():
        tallies[p].logits(expected[:, : logits.shape[1]], logits)
    for n, place in enumerate(one.places):

        def steered(logits: Float, n: int = n, place: int = place) -> Double:
            if ground is None or base is None:
                return _log_softmax(logits[place])
            return _log_softmax(ground.steered(base[n], logits[place]))

        size = next(iter(found.values())).shape[1]
        true = steered(expected[:, :size])
        for p, logits in found.items():
            tallies[p].distributions(true, steered(logits))


@dataclass
class _Tally:
    """Sums over all that was compared for one graph."""

    worst: float = 0.0
    largest: float = 0.0
    kl: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Nats by which PyTorch finds the graph's greedy token less likely than its own."""

    def logits(self, expected: Float, found: Float) -> None:
        """(T, V) each."""
        self.worst = max(self.worst, float(np.abs(found - expected).max()))
        self.largest = max(self.largest, float(np.abs(expected).max()))

    def distributions(self, expected: Double, found: Double) -> None:
        """(V,) log-probabilities each, at one position."""
        self.kl.append(float(np.exp(expected) @ (expected - found)))
        self.lost.append(float(expected.max() - expected[found.argmax()]))

    def figures(self, precision: Precision, size: int, beside: str) -> Figures:
        lost = np.array(self.lost)
        return Figures(
            precision,
            bytes=size,
            positions=len(lost),
            error=self.worst / self.largest if self.largest else self.worst,
            kl=max(0.0, float(np.mean(self.kl))),  # rounding may leave it below
            agreement=float((lost == 0).mean()),
            agreement_or_tie=float((lost <= TIE).mean()),
            beside=beside,
        )


def _log_softmax(row: Float) -> Double:
    wide = row.astype(np.float64)
    wide -= wide.max()
    wide -= math.log(np.exp(wide).sum())
    return wide


def _reference(model: LlamaForCausalLM, tokens: Sequence[int]) -> Float:
    """PyTorch's logits (T, V)."""
    with torch.no_grad():
        logits: Float = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits


def _as_the_runner_feeds(source: OnnxDelta, tokens: Sequence[int]) -> Float:
    """(T, V) float32: a first chunk, then single tokens, then a chunk on the filled cache."""
    source.truncate(0, 0)
    half = max(1, len(tokens) // 2)
    stepped = min(half + _SINGLE_STEPS, len(tokens))
    parts = [source.feed(0, tokens[:half], rows=half)]
    parts += [source.feed(0, [token]) for token in tokens[half:stepped]]
    rest = tokens[stepped:]
    return np.concatenate([*parts, source.feed(0, rest, rows=len(rest))])


def judge(figures: Sequence[Figures]) -> None:
    """Raise InputError for the first graph that falls short; says which ones do not."""
    good = [one.precision for one in figures if _fault(one) is None]
    for one in figures:
        fault = _fault(one)
        if fault is None:
            continue
        ways = [f"leave it out with --precision {','.join(good)}"] if good else []
        if not one.beside:
            ways.append("give --template, so that what it does to its template is compared")
        ways.append("give --data with examples of what it was trained for")
        raise InputError(
            f"the {one.precision} graph {fault}: nothing was written; {', or '.join(ways)}"
        )


def _fault(one: Figures) -> str | None:
    limit = LARGEST_ERROR.get(one.precision, math.inf)
    if not one.error <= limit:
        return f"differs from PyTorch by {one.error:.1e} (at most {limit:.0e} is allowed)"
    where = f"at {one.positions} positions" + (f" beside {one.beside}" if one.beside else "")
    if not one.kl <= LARGEST_KL:
        return f"is {one.kl:.4f} nats from PyTorch {where} (at most {LARGEST_KL} are allowed)"
    if one.agreement_or_tie < LEAST_AGREEMENT:
        return (
            f"picks PyTorch's greedy token, or one as likely, {where} in "
            f"{one.agreement_or_tie:.1%} of them (at least {LEAST_AGREEMENT:.0%} is asked)"
        )
    return None
