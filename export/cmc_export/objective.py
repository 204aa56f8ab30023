"""The losses, as pure functions on logits.

    cross-entropy of softmax(template + delta) on the response's tokens      (Wu et al. 2024, eq. 3)

`N` is the number of positions, `V` of tokens. The three normalizations differ by a constant per
position, so losses and gradients agree (tests/export/test_objective.py).

    >>> template, delta = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    >>> round(float(token_losses(combine(template, delta), torch.tensor([1]))), 4)   # -log(3/4)
    0.2877
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cmc_local.delta.adapter import Normalization


def combine(
    template: Tensor, delta: Tensor, normalization: Normalization = "basenormalization"
) -> Tensor:
    """The steered logits, (..., V): `template` and `delta` are logits of the same shape.

    `add` takes both as they are, `basenormalization` (the published code's default) takes
    log_softmax of the template, `normalization` of both. A template that gives log-probabilities
    already is not changed by its log_softmax, but for rounding.
    """
    if normalization == "add":
        return template + delta
    if normalization == "basenormalization":
        return torch.log_softmax(template, dim=-1) + delta
    return torch.log_softmax(template, dim=-1) + torch.log_softmax(delta, dim=-1)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), nats: (N, V) logits and (N,) int64 -> (N,)."""
    return F.cross_entropy(logits, targets, reduction="none")


def instruct(losses: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The mean over response tokens, (N,) -> (): what `--task instruct` minimises.

    `count` is the number of tokens in the whole optimizer step, where these are a part of it.
    """
    return losses.sum() / _at_least_one(len(losses) if count is None else count)


def bounded_ascent(losses: Tensor, bound: float) -> Tensor:
    """-min(loss, bound) per token, (N,) -> (N,).

    Once a token is as unlikely as exp(-bound) its gradient is zero: plain ascent (minus the loss)
    has no minimum and would go on to infinity at the cost of everything else. The sum is never
    below -bound * N.
    """
    return -losses.clamp(max=bound)


def forget(
    forget_losses: Tensor,
    retain_losses: Tensor,
    bound: float,
    counts: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """Gradient difference (Liu et al. 2022; TOFU's `grad_diff`): ascent on one set, descent on one.

    The mean of `bounded_ascent` over the forget set's tokens plus the mean loss over the retain
    set's: never below -bound. `counts` are both sets' tokens in the whole optimizer step.
    """
    n_forget, n_retain = counts or (len(forget_losses), len(retain_losses))
    ascent = bounded_ascent(forget_losses, bound).sum() / _at_least_one(n_forget)
    return ascent + retain_losses.sum() / _at_least_one(n_retain)


def uniform_loss(vocabulary: int) -> float:
    """log V, nats: the loss of a model that knows nothing; the default bound of `forget`."""
    return math.log(vocabulary)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1.0) if isinstance(count, Tensor) else max(count, 1.0)
