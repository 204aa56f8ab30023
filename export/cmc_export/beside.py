"""One template as a delta in training meets it: with frozen deltas on it, carried over, remembered.

    batch --> template (template_ids, template_keep) --> log-probabilities (N, V_template)
          '-> frozen deltas (input_ids, keep) --carry--^                --> log_softmax

Rows come again in every epoch, so what they gave is kept, up to a size. A template that does not
compute with PyTorch works on the next batch while the delta learns from this one (`prepare`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cmc_export.carrying import Carry
from cmc_export.frozen import Frozen
from cmc_export.loop import Batch
from cmc_export.templates import Template


class Beside:
    """A template, and what a batch is to be compared with there."""

    def __init__(
        self,
        template: Template,
        carry: Carry | None = None,
        deltas: Sequence[Frozen] = (),
        *,
        cache_bytes: int = 0,
        ahead: bool = False,
    ) -> None:
        """`carry` None means that the template has the delta's vocabulary; the others have it too.

        With `ahead` the template works in a thread of its own, and in that one alone: what serves
        it (llama.cpp, ONNX Runtime) is no place for two threads at a time.
        """
        self.name = template.name
        self._template, self._carry, self._deltas = template, carry, list(deltas)
        self._limit = cache_bytes
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0
        self._worker = ThreadPoolExecutor(1, "cmc-template") if ahead else None
        self._ahead: dict[bytes, Future[Tensor]] = {}

    def prepare(self, batch: Batch) -> None:
        """Begin to compute what the next call will be asked for."""
        if self._worker is not None:
            self._ahead[_batch_key(batch)] = self._worker.submit(self._known, batch)

    def __call__(self, batch: Batch) -> Tensor:
        """(N, V_template) float32 log-probabilities (or raw logits) at the kept positions."""
        if self._worker is None:
            found = self._known(batch)
        else:
            waiting = self._ahead.pop(_batch_key(batch), None)
            found = (waiting or self._worker.submit(self._known, batch)).result()
        return found.to(batch["keep"].device)

    def carried(self, delta: Tensor, template: Tensor) -> Tensor:
        """A delta's logits (N, V_delta) as the shift of the template's tokens, (N, V_template)."""
        return delta if self._carry is None else self._carry(delta, template)

    @torch.no_grad()
    def _known(self, batch: Batch) -> Tensor:
        """The rows that are remembered, and the others computed together."""
        ids, keep = _template_side(batch)
        keys = [_row_key(row, kept) for row, kept in zip(ids, keep, strict=True)]
        parts = [self._rows.get(key) for key in keys]
        missing = [i for i, part in enumerate(parts) if part is None]
        if missing:
            some = {n: v[missing] for n, v in batch.items() if n != "which"}
            fresh = self._compute(some)
            for i, part in zip(missing, fresh.split(keep[missing].sum(1).tolist()), strict=True):
                parts[i] = part
                self._remember(keys[i], part)
        return torch.cat([part for part in parts if part is not None])

    def _compute(self, batch: Batch) -> Tensor:
        ids, keep = _template_side(batch)
        plain = self._template(ids, keep)
        if not self._deltas:
            return plain
        base = plain.to(batch["keep"].device)  # a GGUF's are on the CPU, the deltas may not be
        total = base
        for delta in self._deltas:
            own = delta.logits(batch["input_ids"], batch["keep"])
            total = total + self.carried(delta.alpha * own, base)
        return torch.log_softmax(total, dim=-1).to(plain.device)

    def _remember(self, key: bytes, part: Tensor) -> None:
        size = part.numel() * part.element_size()
        if self._bytes + size <= self._limit:  # what is full stays: every epoch has the same rows
            self._rows[key] = part.clone()
            self._bytes += size


def _template_side(batch: Batch) -> tuple[Tensor, Tensor]:
    if "template_ids" in batch:
        return batch["template_ids"], batch["template_keep"]
    return batch["input_ids"], batch["keep"]


def _row_key(ids: Tensor, keep: Tensor) -> bytes:
    """A row's tokens up to its last kept position, and which are kept; padding does not count."""
    end = int(keep.nonzero()[-1]) + 1 if bool(keep.any()) else 0
    return bytes(ids[:end].cpu().numpy().tobytes() + keep[:end].cpu().numpy().tobytes())


def _batch_key(batch: Batch) -> bytes:
    ids, keep = batch["input_ids"], batch["keep"]
    return bytes(ids.cpu().numpy().tobytes() + keep.cpu().numpy().tobytes())
