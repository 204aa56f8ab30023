"""What a delta learns beside: ids (B, T) -> log-probabilities (B, T, V), frozen.

A template is asked for the positions that are in the loss only, so what it returns is (N, V): row n
belongs to the n-th True of `keep`, read row by row. No gradient runs through a template, so it may
be quantised, on another device, or no PyTorch model at all.

    FolderTemplate     a Hugging Face causal LM folder
    AdaptedTemplate    a template with trained deltas added, frozen as well
    CachedTemplate     remembers rows that come again in the next epoch, up to a size
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from cmc_export import delta_model
from cmc_local.errors import InputError, TokenizerError, UsageError
from cmc_local.vocabulary import Vocabulary, from_tokenizer_json


class Template(Protocol):
    """The border: everything that can be a template."""

    name: str

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """(B, T) int64 ids, padded on the right, and (B, T) bool -> (N, V) float32."""
        ...


class FolderTemplate:
    """Any Hugging Face causal LM folder in safetensors; its own code is never run."""

    def __init__(
        self,
        folder: Path,
        vocabulary: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        normalize: bool = True,
    ) -> None:
        """`vocabulary` tokens are kept; `normalize` False gives raw logits (objective `add`)."""
        self.name = folder.resolve().name
        self._vocabulary, self._normalize = vocabulary, normalize
        self._model: Any = _load(folder, dtype).to(device)
        rows = int(self._model.get_output_embeddings().weight.shape[0])
        if rows < vocabulary:
            raise InputError(
                f"{folder} has logits for {rows:,} tokens, its tokenizer {vocabulary:,}: "
                "give the tokenizer that belongs to it"
            )
        accepted = inspect.signature(self._model.forward).parameters
        self._can_skip = "logits_to_keep" in accepted

    @torch.no_grad()
    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """See Template."""
        first = int(keep.any(dim=0).int().argmax()) if self._can_skip else 0
        more = {"logits_to_keep": ids.shape[1] - first} if self._can_skip else {}
        logits = self._model(input_ids=ids, use_cache=False, **more).logits
        kept = logits[keep[:, first:]][:, : self._vocabulary].float()
        return torch.log_softmax(kept, dim=-1) if self._normalize else kept

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return int(self._model.num_parameters())


class AdaptedTemplate:
    """log_softmax(template + sum of alpha * delta): what a second delta learns beside."""

    def __init__(
        self, template: Template, deltas: Sequence[tuple[LlamaForCausalLM, float]], vocabulary: int
    ) -> None:
        self.name = template.name
        self._template, self._deltas, self._vocabulary = template, list(deltas), vocabulary

    @torch.no_grad()
    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """See Template."""
        total = self._template(ids, keep)
        for delta, alpha in self._deltas:
            total = total + alpha * delta_logits(delta, ids, keep, self._vocabulary)
        return torch.log_softmax(total, dim=-1)


class CachedTemplate:
    """Rows of log-probabilities kept in memory, float32, until `limit` bytes are full.

    Epochs bring the same rows again, so what is full stays as it is: nothing is thrown out.
    """

    def __init__(self, template: Template, limit: int) -> None:
        self.name = template.name
        self._template, self._limit = template, limit
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """See Template."""
        keys = [_key(row, kept) for row, kept in zip(ids, keep, strict=True)]
        parts = [self._rows.get(key) for key in keys]
        missing = [i for i, part in enumerate(parts) if part is None]
        if missing:
            fresh = self._template(ids[missing], keep[missing])
            sizes = keep[missing].sum(dim=1).tolist()
            for i, part in zip(missing, fresh.split(sizes), strict=True):
                parts[i] = part
                self._store(keys[i], part)
        return torch.cat([part for part in parts if part is not None])

    def _store(self, key: bytes, part: Tensor) -> None:
        size = part.numel() * part.element_size()
        if self._bytes + size <= self._limit:
            self._rows[key] = part.clone()
            self._bytes += size


def delta_logits(delta: LlamaForCausalLM, ids: Tensor, keep: Tensor, vocabulary: int) -> Tensor:
    """A delta's logits at the kept positions: (B, T) ids, (B, T) bool -> (N, V) float32.

    The hidden states are gathered before the output head, so other positions cost no logits.
    """
    hidden = delta.model(input_ids=ids, use_cache=False).last_hidden_state
    return delta.lm_head(hidden[keep])[:, :vocabulary].float()


def frozen_delta(folder: Path, vocabulary: Vocabulary, device: torch.device) -> LlamaForCausalLM:
    """A trained delta for AdaptedTemplate; InputError where its vocabulary is another."""
    check_same_vocabulary(folder, vocabulary)
    return delta_model.load(folder).to(device).requires_grad_(False)


def check_same_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Raise InputError unless the folder's tokenizer.json has this very vocabulary."""
    found = from_tokenizer_json(tokenizer_file(folder))
    if found.fingerprint != vocabulary.fingerprint:
        raise InputError(
            f"{folder} has another vocabulary ({len(found):,} tokens) than the template "
            f"({len(vocabulary):,}): give a model that was made with the template's tokenizer"
        )


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer.json of a model folder."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a Hugging Face model folder")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json: save it there with the tokenizers library"
        )
    return path


def parameter_count(folder: Path) -> int:
    """A template's parameters from its config.json, no weights loaded."""
    try:
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(_config(folder)).num_parameters())
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{folder} is no causal language model ({_first(error)})") from None


def template_context(folder: Path) -> int:
    """The longest text that the template was made for, tokens."""
    return int(getattr(_config(folder), "max_position_embeddings", None) or 2**31)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json: give a Hugging Face model folder")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise InputError(f"{folder}/config.json cannot be used ({_first(error)})") from None


def _load(folder: Path, dtype: torch.dtype) -> Any:
    _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no *.safetensors (pickled weights are not read: they can run code): "
            "where you trust them, load and save_pretrained() the model once with transformers"
        )
    try:
        with delta_model.quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded ({_first(error)}): copy it again") from None
    return model.eval().requires_grad_(False)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _key(ids: Tensor, keep: Tensor) -> bytes:
    """A row's tokens up to its last kept position, and which are kept; padding does not count."""
    end = int(keep.nonzero()[-1]) + 1 if bool(keep.any()) else 0
    return bytes(ids[:end].cpu().numpy().tobytes() + keep[:end].cpu().numpy().tobytes())


def parse_with_adapter(text: str) -> tuple[Path, float | None]:
    """`FOLDER[:ALPHA]`; None is the checkpoint's own alpha.

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
