"""Losses that make a model forget, as pure functions of per-token losses.

    per token      gradient_ascent, gradient_difference, retain, kl_to_template
    per sequence   npo, simnpo, dpo

Everything is in nats. `losses` (N,) are -log pi of the targets under the steered distribution
softmax(template + delta), `template_losses` (N,) the same under the template alone, which is the
reference model of the papers and carries no gradient. `rows` (N,) int64 numbers each token's
sequence from 0 to n - 1; the tokens of a sequence may stand in any order, but all in one call.

A loss is a mean over the tokens or the sequences of an optimizer step. Where a call holds only a
part of the step, `count` is the number in the whole step, and the parts add up. A sequence without
tokens is left out of sum and count, so `rows` may be a batch's row numbers though only some of the
rows are to be forgotten. Nothing here knows models, batches or vocabularies.

    >>> losses, rows = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1])
    >>> round(float(npo(losses, losses, rows, 2, beta=1.0)), 4)   # pi = pi_ref: 2 log 2
    1.3863
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cmc_export import objective


def sequence_sums(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """Sum the values of each sequence: (N,) and (N,) int64 -> (n,), the dtype of `values`.

    >>> sequence_sums(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 0]), 3).tolist()
    [7.0, 0.0, 2.0]
    """
    return values.new_zeros(n).index_add(0, rows, values)


def sequence_lengths(rows: Tensor, n: int) -> Tensor:
    """How many tokens each sequence has: (N,) int64 -> (n,) int64.

    >>> sequence_lengths(torch.tensor([0, 2, 0]), 3).tolist()
    [2, 0, 1]
    """
    return sequence_sums(torch.ones_like(rows), rows, n)


def retain(losses: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The mean over tokens, (N,) -> (): plain descent, the L_RT of Zhang et al. 2024, section 2.

    It also takes the mean of `kl_to_template` over positions. Over refusals and the retain set
    together it is TOFU's own preference for refusals (Maini et al. 2024, `idk`).

    >>> float(retain(torch.tensor([1.0, 2.0, 6.0])))
    3.0
    """
    return objective.instruct(losses, count)


def gradient_ascent(
    losses: Tensor, bound: float = math.inf, count: Tensor | float | None = None
) -> Tensor:
    """Minus the mean loss, (N,) -> (): L_GA of Zhang et al. 2024, eq. 1; TOFU's `grad_ascent`.

    The papers have no bound. With one, a token that is less likely than exp(-bound) is pushed no
    further (see objective.bounded_ascent).

    >>> float(gradient_ascent(torch.tensor([1.0, 5.0])))
    -3.0
    >>> float(gradient_ascent(torch.tensor([1.0, 5.0]), bound=2.0))   # -(1 + 2) / 2
    -1.5
    """
    return retain(objective.bounded_ascent(losses, bound), count)


def gradient_difference(
    losses: Tensor,
    retain_losses: Tensor,
    bound: float = math.inf,
    counts: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """`gradient_ascent` on (N,) plus `retain` on (M,) -> () (Liu et al. 2022).

    TOFU's `grad_diff` (Maini et al. 2024), the loss of Wu et al. 2024 for forgetting. `counts` are
    the tokens to forget and to retain in the whole step.

    >>> float(gradient_difference(torch.tensor([1.0, 5.0]), torch.tensor([0.5])))   # -3 + 0.5
    -2.5
    """
    return objective.forget(losses, retain_losses, bound, counts)


def kl_to_template(template_logprobs: Tensor, steered_logprobs: Tensor) -> Tensor:
    """KL(template || steered) at each position, nats: twice (N, V) log-probabilities -> (N,).

    TOFU's `KL` (Maini et al. 2024) on the retain set; the same on plain text. It is 0 where the
    shift is the same for every token and infinite where the steered model excludes a token that
    the template does not; a token that the template excludes adds nothing.

    >>> template, steered = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> round(float(kl_to_template(template, steered)), 4)   # log(2) / 2 + log(2 / 3) / 2
    0.1438
    """
    probability = template_logprobs.exp()
    terms = probability * (template_logprobs - steered_logprobs)
    return torch.where(probability > 0, terms, 0.0).sum(dim=-1)


def npo(
    losses: Tensor,
    template_losses: Tensor,
    rows: Tensor,
    n: int,
    beta: float,
    count: Tensor | float | None = None,
) -> Tensor:
    """Negative preference optimisation, (N,) -> () (Zhang et al. 2024, eq. 3).

    (2 / beta) * mean over sequences of log(1 + (pi / pi_ref)^beta), with beta > 0. Never below 0,
    (2 / beta) log 2 at pi = pi_ref. The gradient is ascent's, a sequence at a time, weighted by
    2 sigmoid(beta log(pi / pi_ref)): 1 at the start, towards 0 once forgotten. As beta -> 0 it is
    ascent on whole sequences (their Proposition 1).

    >>> losses, template_losses = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])
    >>> round(float(npo(losses, template_losses, torch.tensor([0, 0]), 1, beta=0.5)), 4)
    1.253
    >>> round(4 * math.log(1 + math.exp(-1)), 4)   # log(pi / pi_ref) = 3 - 5
    1.253
    """
    there = sequence_lengths(rows, n) > 0
    log_ratios = sequence_sums(template_losses - losses, rows, n)[there]
    return retain(-F.logsigmoid(-beta * log_ratios) * (2 / beta), count)


def simnpo(
    losses: Tensor,
    rows: Tensor,
    n: int,
    beta: float,
    gamma: float,
    count: Tensor | float | None = None,
) -> Tensor:
    """NPO without a reference, by length, (N,) -> () (SimNPO; Fan et al. 2024, arXiv 2410.07163).

    -(2 / beta) * mean over sequences of log sigmoid(-(beta / |y|) log pi(y|x) - gamma), with
    beta > 0 and gamma >= 0 (the paper's choice is 0). The authors' code subtracts its `gamma` from
    the mean loss before beta multiplies it: that value times beta is this gamma.

    >>> losses, rows = torch.tensor([1.0, 3.0]), torch.tensor([0, 0])
    >>> round(float(simnpo(losses, rows, 1, beta=0.5, gamma=1.0)), 4)   # 4 log 2: 0.5 * 2 - 1 = 0
    2.7726
    """
    lengths = sequence_lengths(rows, n)
    there = lengths > 0
    mean_losses = sequence_sums(losses, rows, n)[there] / lengths[there]
    return retain(-F.logsigmoid(beta * mean_losses - gamma) * (2 / beta), count)


def dpo(
    refusal_losses: Tensor,
    refusal_template_losses: Tensor,
    refusal_rows: Tensor,
    losses: Tensor,
    template_losses: Tensor,
    rows: Tensor,
    n: int,
    beta: float,
    count: Tensor | float | None = None,
) -> Tensor:
    """Prefer a refusal to the answer, (M,) and (N,) -> () (DPO; Rafailov et al. 2023, eq. 7).

    -mean over pairs of log sigmoid(beta * (log(pi / pi_ref) of the refusal - that of the answer)),
    beta > 0: log 2 at pi = pi_ref. TOFU's code has it as `dpo`. Zhang et al. 2024, eq. 2, divide it
    by beta, which only changes its weight beside another loss. Refusal and answer of one question
    have the same row; a pair of which one half has no tokens is left out.

    >>> refusal, answer, rows = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([0])
    >>> round(float(dpo(refusal, refusal + 1, rows, answer, answer - 1, rows, 1, beta=0.5)), 4)
    0.3133
    >>> round(math.log(1 + math.exp(-0.5 * (1 + 1))), 4)   # log(pi / pi_ref): 1 and -1
    0.3133
    """
    refusal_ratios = sequence_sums(refusal_template_losses - refusal_losses, refusal_rows, n)
    answer_ratios = sequence_sums(template_losses - losses, rows, n)
    both = (sequence_lengths(refusal_rows, n) > 0) & (sequence_lengths(rows, n) > 0)
    return retain(-F.logsigmoid(beta * (refusal_ratios - answer_ratios)[both]), count)
