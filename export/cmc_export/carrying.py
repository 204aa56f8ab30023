"""A delta's logits carried over to a template of another vocabulary, within the training graph.

The same map and fill as at run time (steer/control.py), as differentiable operations, and the
places at which the two streams of tokens say the same text:

    template   Who  ?  \\n  Hel  en  .        places after "\\n", "Helen" and "." are both streams'
    delta      Who?  \\n    Helen  .          the one after "Hel" is the template's alone

Knows tokens and logits; nothing of prompts, files or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmc_local.text.token_map import TokenMap
from cmc_local.text.vocabulary import Vocabulary


class Carry:
    """One token map as a gather: (N, V_delta) logits -> (N, V_template) shifts."""

    def __init__(self, token_map: TokenMap, device: torch.device | str = "cpu") -> None:
        self.delta_size = token_map.delta_size
        self._index = torch.from_numpy(token_map.index()).to(device)
        self._lone = torch.from_numpy(token_map.ids < 0).to(device)
        self._fills = bool(self._lone.any()) and not bool(self._lone.all())

    def __call__(self, delta: Tensor, template: Tensor) -> Tensor:
        """`delta` (N, V_delta) logits, `template` (N, V_template) log-probabilities or logits.

        Tokens without counterpart get the fill that keeps their total probability (docs/design.md):
        logsumexp_mapped(template + shift) - logsumexp_mapped(template); 0 where no token has one.
        """
        open_end = torch.cat([delta, delta.new_zeros(len(delta), 1)], dim=1)
        shift = open_end[:, self._index]
        if not self._fills:
            return shift
        mapped = template.masked_fill(self._lone, -torch.inf)
        fill = torch.logsumexp(mapped + shift, 1) - torch.logsumexp(mapped, 1)
        return torch.where(self._lone, fill[:, None], shift)


@dataclass(frozen=True, slots=True)
class Stream:
    """One conversation as a model's tokens; token i is in the loss where `in_loss[i]`."""

    ids: Sequence[int]
    in_loss: Sequence[bool]
    vocabulary: Vocabulary


def shared_places(delta: Stream, template: Stream) -> list[tuple[int, int]]:
    """Positions (in the delta's stream, in the template's) after which both say the same text.

    At these the next token of the template is in the loss, and so is that of the delta. A place is
    told by what is still to come of its answer, in bytes: how the prompts were cut does not matter.
    What comes before a token without text (an unknown character) is in no pair: its bytes are lost.
    """
    theirs = dict(_places(template))
    found = [(at, theirs[place]) for place, at in _places(delta) if place in theirs]
    return sorted(found)


def _places(stream: Stream) -> Iterator[tuple[tuple[int, int], int]]:
    """((which exchange from the end, bytes to come), position), the last position first."""
    eos, texts = stream.vocabulary.eos_id, stream.vocabulary.tokens
    exchange, to_come, told = 0, 0, True
    for at in range(len(stream.ids) - 1, 0, -1):
        text = texts[stream.ids[at]]
        if stream.ids[at] == eos:
            exchange, to_come, told = exchange + 1, 0, True
        else:
            to_come, told = to_come + len(text), told and bool(text)
        if told and stream.in_loss[at]:
            yield (exchange, to_come), at - 1
