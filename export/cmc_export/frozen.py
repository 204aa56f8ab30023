"""Trained deltas that stand on a template while another one learns: checkpoints or adapters.

    frozen(folder, ...) -> (ids, keep) -> logits at the kept positions

No gradient runs through them. An adapter is run as the runner runs it, by ONNX Runtime in
the most exact precision that it has, so that what somebody else published can be learned on top of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmc_export import delta_model
from cmc_export.delta_model import gathered_logits
from cmc_export.templates import check_same_vocabulary
from cmc_local.delta import adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import UsageError
from cmc_local.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Frozen:
    """A delta and its strength."""

    logits: Callable[[Tensor, Tensor], Tensor]
    """(B, T) int64 ids, padded on the right, and (B, T) bool -> (N, V) float32, row by row."""
    alpha: float


def frozen(
    folder: Path, vocabulary: Vocabulary, device: torch.device, alpha: float | None
) -> Frozen:
    """A trained delta of the same vocabulary as the one to be trained; else InputError.

    `folder` is a checkpoint of `cmc-local train`, any Hugging Face llama folder, or an adapter;
    `alpha` None takes what it suggests itself.
    """
    check_same_vocabulary(folder, vocabulary)
    if (folder / adapter.SETTINGS_FILE).is_file():
        found = adapter.load(folder)
        own = found.settings.alpha
        logits = _OnnxLogits(found, len(vocabulary), device)
        return Frozen(logits, own if alpha is None else alpha)
    info = delta_model.read_info(folder)
    own = info.alpha if info is not None else 1.0
    model = delta_model.load(folder).to(device).requires_grad_(False)

    def computed(ids: Tensor, keep: Tensor) -> Tensor:
        return gathered_logits(model, ids, keep, len(vocabulary))

    return Frozen(computed, own if alpha is None else alpha)


def parse_with_adapter(text: str) -> tuple[Path, float | None]:
    """`FOLDER[:ALPHA]`; None is the delta's own alpha.

    >>> parse_with_adapter("runs/instruct:0.5")
    (PosixPath('runs/instruct'), 0.5)
    """
    place, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    try:
        return Path(place), float(tail)
    except ValueError:
        raise UsageError(
            f"--with-adapter {text}: {tail!r} is no number: write FOLDER:0.8"
        ) from None


class _OnnxLogits:
    """An adapter's graph, row by row."""

    def __init__(self, found: adapter.Adapter, vocabulary: int, device: torch.device) -> None:
        self._delta = OnnxDelta(found, device="cpu", precision=found.most_exact)
        self._vocabulary, self._device = vocabulary, device

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        parts = [torch.empty(0, self._vocabulary)]
        for row, kept in zip(ids.tolist(), keep.cpu(), strict=True):
            places = kept.nonzero()[:, 0]
            if not len(places):
                continue
            first, end = int(places[0]), int(places[-1]) + 1
            self._delta.truncate(0, 0)
            logits = torch.from_numpy(self._delta.feed(0, row[:end], end - first).copy())
            parts.append(logits[places - first, : self._vocabulary])
        return torch.cat(parts).to(self._device)
