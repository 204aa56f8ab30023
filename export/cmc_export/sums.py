"""What the losses need of a template's distribution: its mass on each of the delta's tokens.

The map m sends each template token v to a delta token m(v) or to none. A delta's logits s give
every template token the shift s[m(v)], and the tokens without counterpart the fill that keeps
their total probability. So tokens with the same counterpart get the same shift, and everything
that a loss asks of the template are sums over them:

    W_d = sum of p(v) over v with m(v) = d       W_none = sum of p(v) over v without counterpart
    fill  = log sum_d W_d e^{s_d} - log sum_d W_d
    log Z = log( sum_d W_d e^{s_d} + W_none e^fill )
    log steered(t)           = log p(t) + s_{m(t)} - log Z            (the fill where m(t) is none)
    KL(template || steered)  = log Z - sum_d W_d s_d - W_none fill

These are identities: V_delta + 3 numbers a position stand for the V_template that the template
gave. `N` is the number of positions.

    >>> ids = np.array([0, 0, -1], np.int32)     # two template tokens share one delta token
    >>> fibres = Fibres(TokenMap(ids, np.zeros(3, np.uint8), 2))
    >>> found = fibres(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([1]))
    >>> found.log_mass.exp().tolist()            # delta token 0, delta token 1, none
    [[0.75, 0.0, 0.25]]
    >>> steered = Steered(found, torch.tensor([[math.log(3.0), 0.0]]))
    >>> [round(float(x), 4) for x in steered.losses().exp()]   # 1 / 0.25: all get the same shift
    [4.0]

Knows tokens and numbers; nothing of files, models or rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmc_local.errors import InputError
from cmc_local.text.token_map import TokenMap

LEAST_LOG_MASS = -87.0
"""exp of it is near the least normal float32: the mass of tokens that are there, but as good as
impossible. No counterpart at all is -inf."""


@dataclass(frozen=True)
class Sums:
    """What a template says at N positions."""

    log_mass: Tensor
    """(N, V_delta + 1) float: log W_d, and log W_none last; -inf where no token belongs to it"""
    targets: Tensor
    """(N,) int64: the next token's counterpart, V_delta for none"""
    target_logprobs: Tensor
    """(N,) float: the template's log-probability of the next token, nats"""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: Tensor) -> Sums:
        """The positions that a mask or index picks."""
        return Sums(self.log_mass[at], self.targets[at], self.target_logprobs[at])

    def to(self, device: torch.device | str) -> Sums:
        """On another device, in float32."""
        return Sums(
            self.log_mass.to(device).float(),
            self.targets.to(device),
            self.target_logprobs.to(device).float(),
        )


def joined(parts: list[Sums]) -> Sums:
    """Several positions' sums, one after the other."""
    return Sums(
        torch.cat([part.log_mass for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.target_logprobs for part in parts]),
    )


class Fibres:
    """Template tokens by their delta token: log-probabilities (N, V_template) -> Sums."""

    def __init__(self, token_map: TokenMap, device: torch.device | str = "cpu") -> None:
        """Raises InputError for a map that gives no token a counterpart."""
        if not (token_map.ids >= 0).any():
            raise InputError(
                "no token of the template has a counterpart in the delta's vocabulary: "
                "give another tokenizer"
            )
        index = token_map.index()
        self.delta_size = token_map.delta_size
        self.template_size = len(index)
        self._index = torch.from_numpy(index).to(device)
        identity = np.arange(len(index))
        self._identity = len(index) == self.delta_size and bool((index == identity).all())
        there = np.bincount(index, minlength=self.delta_size + 1) > 0
        self._empty = torch.from_numpy(~there).to(device)

    def __call__(self, logprobs: Tensor, targets: Tensor) -> Sums:
        """`logprobs` (N, V_template) float, each row's exp sums to 1; `targets` (N,) int64."""
        chosen = logprobs.gather(1, targets[:, None].to(logprobs.device))[:, 0]
        return Sums(self.log_mass(logprobs), self._index[targets], chosen)

    def log_mass(self, logprobs: Tensor) -> Tensor:
        """log W, (N, V_template) -> (N, V_delta + 1) of the same dtype."""
        if self._identity:
            least = logprobs.clamp(min=LEAST_LOG_MASS)
            return torch.cat([least, least.new_full((len(least), 1), -math.inf)], dim=1)
        mass = logprobs.new_zeros(len(logprobs), self.delta_size + 1)
        mass.index_add_(1, self._index, logprobs.exp())
        return mass.log_().clamp_(min=LEAST_LOG_MASS).masked_fill_(self._empty, -math.inf)


class Steered:
    """softmax(template + mapped delta) at N positions, from the template's sums."""

    def __init__(self, template: Sums, delta: Tensor) -> None:
        """`delta` is (N, V_delta) float, its logits; gradients run through it alone."""
        self.template = template
        mapped, lone = template.log_mass[:, :-1], template.log_mass[:, -1]
        after = torch.logsumexp(mapped + delta, 1)
        fill = after - torch.logsumexp(mapped, 1)
        self.shift = torch.cat([delta, fill[:, None]], dim=1)
        """(N, V_delta + 1): each delta token's shift, and the fill"""
        self.log_z = torch.logaddexp(after, lone + fill)
        """(N,): log of the steered distribution's normaliser"""

    def losses(self) -> Tensor:
        """-log steered(target), nats, (N,)."""
        own = self.shift.gather(1, self.template.targets[:, None])[:, 0]
        return self.log_z - own - self.template.target_logprobs

    def divergences(self) -> Tensor:
        """KL(template || steered), nats, (N,); 0 where every token has the same shift."""
        return self.log_z - (self.template.log_mass.exp() * self.shift).sum(1)
