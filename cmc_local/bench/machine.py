"""The machine and the files of a measurement, as far as they belong in public.

Cores, memory and versions; of files the name and the size. No host name, no path, no user.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cmc_local import __version__
from cmc_local.base.threads import usable_cores


def machine() -> dict[str, Any]:
    """What a figure depends on beside the models, in JSON's types."""
    from cmc_local.base import library as base_library

    return {
        "cores": usable_cores(),
        "memory_gb": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "cmc_local": __version__,
        "llama_cpp_python": installed("llama-cpp-python"),
        "onnxruntime": installed("onnxruntime-gpu") or installed("onnxruntime"),
        "gpu_offload": base_library.offloads_to_gpu(),
        "python": platform.python_version(),
    }


def base_file(path: Path) -> dict[str, Any]:
    """A GGUF by name, size and the types of its tensors. Raises GGUFError."""
    from cmc_local.base import gguf_header

    header = gguf_header.read(path)
    return {
        "name": path.name,
        "mb": megabytes(path.stat().st_size),
        "parameters": header.parameters,
        "tensor_types": header.tensor_types,
    }


def megabytes(size: int) -> float:
    """Bytes as megabytes of 10^6, one decimal."""
    return round(size / 1e6, 1)


def _memory() -> float | None:
    """Gigabytes of the machine's memory; None where the system does not tell."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(size / 1e9, 1)


def installed(name: str) -> str:
    """A package's version; "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
