"""A template that is asked while the delta learns: its sums for a batch, computed anew each time.

    batch --> template (template_ids, template_keep) --> log-probabilities (N, V_template) --> Sums
          '-> frozen deltas (input_ids, keep) --carry--^

This is how answers are recorded (recording.py), and how a run learns that sees its rows only
once, or whose answers would fill the disk. A template that does not compute with PyTorch works on
the next batch while the delta learns from this one (`prepare`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from cmc_export.carrying import Carry
from cmc_export.frozen import Frozen
from cmc_export.loop import Batch
from cmc_export.sums import Fibres, Sums
from cmc_export.templates import Template
from cmc_local.text.token_map import TokenMap


class Beside(Protocol):
    """What a delta learns beside: a template that is asked now (Asked), or its answers on disk."""

    name: str

    @property
    def template_tokens(self) -> int:
        """The template's vocabulary."""

    def prepare(self, batch: Batch) -> None:
        """Told of a batch before its step begins."""

    def __call__(self, batch: Batch) -> Sums:
        """The sums of the batch's N kept positions, row by row, on the batch's device."""


class Asked:
    """A template with its weights in memory, and what a batch is to be compared with there."""

    def __init__(
        self,
        template: Template,
        token_map: TokenMap,
        deltas: Sequence[Frozen] = (),
        *,
        device: torch.device | str = "cpu",
        ahead: bool = False,
    ) -> None:
        """`token_map` leads from the template's vocabulary to that of the delta, and of `deltas`.

        With `ahead` the template works in a thread of its own, and in that one alone: what serves
        it (llama.cpp, ONNX Runtime) is no place for two threads at a time.
        """
        self.name = template.name
        self.template_tokens = len(token_map.ids)
        self._template, self._deltas = template, list(deltas)
        self._carry = Carry(token_map, device) if deltas else None
        self._fibres = Fibres(token_map, device)
        self._device = device
        self._worker = ThreadPoolExecutor(1, "cmc-template") if ahead else None
        self._ahead: dict[bytes, Future[Sums]] = {}

    def prepare(self, batch: Batch) -> None:
        """Begin to compute what a coming call will be asked for."""
        if self._worker is not None:
            self._ahead[_batch_key(batch)] = self._worker.submit(self._sums, batch)

    def __call__(self, batch: Batch) -> Sums:
        """See Beside."""
        if self._worker is None:
            return self._sums(batch)
        waiting = self._ahead.pop(_batch_key(batch), None)
        return (waiting or self._worker.submit(self._sums, batch)).result()

    def close(self) -> None:
        """Free the template's memory."""
        if self._worker is not None:
            self._worker.shutdown()
        close = getattr(self._template, "close", None)
        if close is not None:
            close()

    @torch.no_grad()
    def _sums(self, batch: Batch) -> Sums:
        logprobs = self.logprobs(batch)
        targets = batch["targets"][batch["keep"]].to(logprobs.device)
        return self._fibres(logprobs, targets)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """(N, V_template) float32 log-probabilities, with the frozen deltas on them."""
        theirs = "template_ids" in batch
        ids = batch["template_ids" if theirs else "input_ids"]
        plain = self._template(ids, batch["template_keep" if theirs else "keep"])
        base = plain.to(self._device)
        if self._carry is None:
            return base
        total = base
        for delta in self._deltas:
            own = delta.logits(batch["input_ids"], batch["keep"]).to(base.device)
            total = total + self._carry(delta.alpha * own, base)
        return torch.log_softmax(total, dim=-1)


def _batch_key(batch: Batch) -> bytes:
    return bytes(batch["keys"].cpu().numpy().tobytes())
