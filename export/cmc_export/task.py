"""The two tasks as objectives: what a batch's logits and log-probabilities are worth.

Instruct   cross-entropy on the answers
Forget     away from some answers, beside what must stay
both       and, on plain texts, KL to the template: there the delta is to change nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmc_export import forgetting, objective
from cmc_export.beside import Beside
from cmc_export.delta_model import gathered_logits
from cmc_export.examples import FORGET, LEARN, PLAIN, REFUSE
from cmc_export.loop import Batch, Objective
from cmc_export.recipe import TrainRecipe
from cmc_export.sums import Steered


@dataclass(frozen=True)
class Positions:
    """The N kept positions of a batch, row by row."""

    steered: Steered
    """The template with the delta on it."""
    rows: Tensor
    """(N,) int64, which row of the batch"""
    kinds: Tensor
    """(N,) int64, LEARN, FORGET, REFUSE or PLAIN"""

    def losses(self, kind: int) -> Tensor:
        """-log p(target) of the positions of one kind, nats."""
        return self.steered.losses()[self.kinds == kind]

    def template_losses(self, kind: int) -> Tensor:
        """The same of the template alone."""
        return -self.steered.template.target_logprobs[self.kinds == kind]

    def divergences(self, kind: int) -> Tensor:
        """KL(template || steered) at the positions of one kind, nats."""
        return self.steered.divergences()[self.kinds == kind]


class Instruct(Objective):
    """Cross-entropy of softmax(template + delta) on the tokens of the answers."""

    def __init__(self, beside: Sequence[Beside], recipe: TrainRecipe, vocabulary: int) -> None:
        """`vocabulary` is the delta's number of tokens."""
        self.beside, self.recipe, self.vocabulary = list(beside), recipe, vocabulary

    def prepare(self, batch: Batch) -> None:
        """Let the template of this batch begin."""
        self.beside[int(batch["which"])].prepare(batch)

    def counts(self, batch: Batch) -> Tensor:
        """(2,) float: tokens to learn, tokens of plain text."""
        return torch.stack([_tokens(batch, LEARN), _tokens(batch, PLAIN)])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """See objective.instruct."""
        found = self.positions(model, batch)
        learned = objective.instruct(found.losses(LEARN), counts[0])
        return learned + self.plain_loss(found, counts[1])

    def plain_loss(self, found: Positions, count: Tensor) -> Tensor:
        """The weighted KL on plain texts, () float32; 0 where there are none."""
        if not self.recipe.plain:
            return found.steered.log_z.new_zeros(())
        return self.recipe.plain_weight * forgetting.retain(found.divergences(PLAIN), count)

    def positions(self, model: Any, batch: Batch) -> Positions:
        """Both models' view of the kept positions."""
        keep = batch["keep"]
        with torch.autocast(keep.device.type, enabled=False):
            template = self.beside[int(batch["which"])](batch)
        delta = gathered_logits(model, batch["input_ids"], keep, self.vocabulary)
        if self.recipe.normalization == "normalization":
            delta = torch.log_softmax(delta, dim=-1)
        with torch.autocast(keep.device.type, enabled=False):
            steered = Steered(template, delta)
        rows = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)[keep]
        return Positions(steered, rows, batch["kind"][rows])


class Forget(Instruct):
    """Away from the answers to forget; rows to keep are held by descent or by KL."""

    def counts(self, batch: Batch) -> Tensor:
        """(5,) float: sequences to forget; tokens to forget, keep, leave alone, and of refusals."""
        gone = (batch["kind"] == FORGET) & batch["keep"].any(dim=1)
        tokens = [_tokens(batch, kind) for kind in (FORGET, LEARN, PLAIN, REFUSE)]
        return torch.stack([gone.sum().float(), *tokens])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """The recipe's loss of forgetting, beside its loss on what must stay."""
        found = self.positions(model, batch)
        held = found.divergences if self.recipe.retain_loss == "kl" else found.losses
        kept = self.recipe.retain_weight * forgetting.retain(held(LEARN), counts[2])
        away = self._away(found, counts, batch)
        return away + kept + self.plain_loss(found, counts[3])

    def _away(self, found: Positions, counts: Tensor, batch: Batch) -> Tensor:
        chosen, losses, n = self.recipe, found.losses(FORGET), len(batch["kind"])
        if chosen.forget_loss == "idk":
            return forgetting.retain(found.losses(REFUSE), counts[4])
        if chosen.forget_loss == "ascent":
            tokens = self.beside[int(batch["which"])].template_tokens
            bound = chosen.forget_bound or objective.uniform_loss(tokens)
            return forgetting.gradient_ascent(losses, bound, counts[1])
        rows, beta = found.rows[found.kinds == FORGET], chosen.forget_beta
        if chosen.forget_loss == "simnpo":
            return forgetting.simnpo(losses, rows, n, beta, chosen.forget_gamma, counts[0])
        before = found.template_losses(FORGET)
        if chosen.forget_loss == "npo":
            return forgetting.npo(losses, before, rows, n, beta, counts[0])
        return forgetting.dpo(
            found.losses(REFUSE),
            found.template_losses(REFUSE),
            found.rows[found.kinds == REFUSE] - 1,  # it stands behind the answer it replaces
            losses,
            before,
            rows,
            n,
            beta,
            counts[0],
        )


def _tokens(batch: Batch, kind: int) -> Tensor:
    return batch["keep"][batch["kind"] == kind].sum().float()
