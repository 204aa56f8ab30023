"""LoRA files (GGUF, as llama.cpp's convert_lora_to_gguf.py writes them) on a base model.

llama.cpp adds `scale * alpha / rank * B (A x)` to each weight's product while it decodes; the
weights stay as they are (Hu et al. 2021, arXiv 2106.09685, section 4.1). Adapters belong to the
model that they were loaded for and are freed with it. Knows nothing of deltas.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmc_local.base import gguf_header
from cmc_local.base import library as base_library
from cmc_local.base.library import llama_cpp
from cmc_local.errors import GGUFError, UsageError

LoraLike = tuple[str | Path, float]
"""A LoRA file and its scale: 1 as trained, 0 without effect."""


class Loras:
    """The LoRA files of one model; made before its contexts, whose graphs must have room for them.

    llama.cpp counts on that: a context reserves what the adapters add to its graph when it is made.
    """

    def __init__(self, model: Any, loras: Sequence[LoraLike], base: Path) -> None:
        """Load them for a `llama_model *`; GGUFError for a file that is none or does not fit."""
        loaded = [(_load(model, Path(path), scale, base), scale) for path, scale in loras]
        self._acting = [(adapter, scale) for adapter, scale in loaded if scale != 0.0]

    def act_on(self, context: Any) -> None:
        """Let them act in a `llama_context *` of the model from the next decode on."""
        count = len(self._acting)
        if not count:
            return
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * count)(
            *(ctypes.cast(one, llama_cpp.llama_adapter_lora_p_ctypes) for one, _ in self._acting)
        )
        scales = (ctypes.c_float * count)(*(scale for _, scale in self._acting))
        if code := llama_cpp.llama_set_adapters_lora(context, adapters, count, scales):
            raise GGUFError(
                f"llama.cpp does not take the LoRA files together (its code {code}): leave one out"
            )


def _load(model: Any, path: Path, scale: float, base: Path) -> Any:
    if not math.isfinite(scale):
        raise UsageError(f"the scale of {path} must be a finite number, not {scale}")
    if gguf_header.read(path).metadata.get("general.type") != "adapter":
        raise GGUFError(
            f"{path} is no LoRA: give a GGUF file that llama.cpp's convert_lora_to_gguf.py made"
        )
    with base_library.ErrorLines() as errors:
        adapter = llama_cpp.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        reason = errors.reason().rpartition("failed to apply lora adapter: ")[2]
        raise GGUFError(
            f"{path} does not fit {base} ({reason or 'llama.cpp gives no reason'}): give a LoRA "
            "that was trained on this model"
        )
    return adapter
