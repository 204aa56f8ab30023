"""What a delta learns beside: ids (B, T) -> log-probabilities (B, T, V), frozen.

A template is asked for the positions that are in the loss only, so what it returns is (N, V): row n
belongs to the n-th True of `keep`, read row by row. No gradient runs through a template, so it may
be quantised, on another device, or no PyTorch model at all.

    FolderTemplate    a Hugging Face causal LM folder, here
    GgufTemplate      a GGUF file, gguf_template.py

What is added to a template, and what is kept of its answers: beside.py.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cmc_export import delta_model
from cmc_local.errors import InputError, TokenizerError
from cmc_local.text.vocabulary import Vocabulary, from_tokenizer_json


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
        device_map: str = "",
    ) -> None:
        """`vocabulary` tokens are kept.

        `device_map` is accelerate's ("auto" spreads the layers over the GPUs), in place of
        `device`, where the log-probabilities go in any case.
        """
        self.name = folder.resolve().name
        self._vocabulary, self._device = vocabulary, device
        self._model: Any = _load(folder, dtype, device_map)
        if not device_map:
            self._model = self._model.to(device)
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
        logits = self._model(input_ids=ids.to(self._model.device), use_cache=False, **more).logits
        at = keep[:, first:].to(logits.device)
        kept = logits[at][:, : self._vocabulary].float().to(self._device)
        return torch.log_softmax(kept, dim=-1)

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return int(self._model.num_parameters())


def check_same_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Raise InputError unless the folder's tokenizer.json has this very vocabulary."""
    found = from_tokenizer_json(tokenizer_file(folder))
    if found.fingerprint != vocabulary.fingerprint:
        raise InputError(
            f"{folder} has another vocabulary ({len(found):,} tokens) than the delta "
            f"({len(vocabulary):,}): give a model that was made with the delta's tokenizer"
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


def _load(folder: Path, dtype: torch.dtype, device_map: str) -> Any:
    _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no *.safetensors (pickled weights are not read: they can run code): "
            "where you trust them, load and save_pretrained() the model once with transformers"
        )
    try:
        with delta_model.quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                device_map=device_map or None,
            )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded ({_first(error)}): copy it again") from None
    return model.eval().requires_grad_(False)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
