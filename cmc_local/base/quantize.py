"""A GGUF file written anew in fewer bits, by llama.cpp's own quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from cmc_local import files
from cmc_local.base import library as base_library
from cmc_local.base.library import llama_cpp
from cmc_local.errors import GGUFError

Quantisation = Literal["Q4_0", "Q4_K_M", "Q8_0"]
_TYPES: Final = {"Q4_0": 2, "Q4_K_M": 15, "Q8_0": 7}  # enum llama_ftype


def quantize(source: Path, target: Path, kind: Quantisation, *, threads: int = 0) -> None:
    """Write `target` from an F16 or F32 file, whole or not at all.

    Rows that the type cannot hold (Q4_0 and Q8_0 take multiples of 32, Q4_K of 256) get another
    type from llama.cpp: `gguf_header.read(target).tensor_types` tells what became of them. Raises
    GGUFError where it fails.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = _TYPES[kind], threads
    with files.whole(target) as part, base_library.ErrorLines() as errors:
        names = str(source).encode(), str(part).encode()
        if llama_cpp.llama_model_quantize(*names, params):
            raise GGUFError(
                f"{source} cannot be quantised to {kind} "
                f"({errors.reason() or 'llama.cpp failed'}): give an F16 or F32 file"
            )
