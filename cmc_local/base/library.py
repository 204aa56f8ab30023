"""llama.cpp itself: quiet, its errors collected, and a GGUF loaded by it.

The other files of this room build on this and import `llama_cpp` from here; no other room touches
it. Its functions are met through ctypes, without types: pointers are `Any`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cmc_local.base import gguf_header
from cmc_local.errors import GGUFError

_SPIN = "GOMP_SPINCOUNT"
_SPINS = "20000"
"""About a third of a millisecond: longer than a barrier within a decode takes."""


def _import_llama_cpp() -> Any:
    """The library, its threads told to stop spinning soon after a decode.

    GNU OpenMP's idle threads spin for some 5 ms by default, on the cores that the delta needs next:
    its step took 2.6 ms instead of 1.8. They must not sleep at once either, since a decode is
    hundreds of barriers. OpenMP reads the variable once, as the library is loaded; what the user
    has set stays.
    """
    ours = _SPIN not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if ours:
        os.environ[_SPIN] = _SPINS
    try:
        import llama_cpp

        return llama_cpp
    finally:
        if ours:
            del os.environ[_SPIN]


llama_cpp = _import_llama_cpp()

_log = logging.getLogger("cmc_local")

_ERROR, _CONTINUED = 4, 5  # ggml_log_level
_GPU, _INTEGRATED_GPU = 1, 2  # ggml_backend_dev_type
_MARK = "error loading model: "

REBUILD = (
    'F="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; CFLAGS="$F" CXXFLAGS="$F" '
    "CMAKE_ARGS=\"-DCMAKE_C_FLAGS='$F' -DCMAKE_CXX_FLAGS='$F'\" pip install --force-reinstall "
    "--no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)
"""Builds llama.cpp without AMX code (x86-64 only)."""
AMX_NOTICE = (
    "this build of llama.cpp can crash in the processor's AMX unit, so models are loaded without"
    f" it, which is slower; to build it anew, type: {REBUILD}"
)


def _ignore(level: int, text: bytes | None, data: object) -> None:
    """Drop a line of llama.cpp's log."""


_QUIET = llama_cpp.llama_log_callback(_ignore)


class ErrorLines:
    """While entered, collects what llama.cpp logs as errors; otherwise its log is dropped."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._callback = llama_cpp.llama_log_callback(self._collect)
        self._last_level = 0

    def __enter__(self) -> ErrorLines:
        llama_cpp.llama_log_set(self._callback, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        llama_cpp.llama_log_set(_QUIET, None)

    def _collect(self, level: int, text: bytes | None, data: object) -> None:
        if level != _CONTINUED:
            self._last_level = level
        if self._last_level == _ERROR and text and text.strip():
            self.lines.append(text.decode("utf-8", "replace").strip())

    def reason(self) -> str:
        """The last line that names a cause; "" where llama.cpp logged none."""
        telling = [line for line in self.lines if "failed to load model" not in line]
        last = telling[-1] if telling else ""
        return last.partition(_MARK)[2] or last


def version() -> str:
    """llama-cpp-python's version."""
    return str(llama_cpp.__version__)


def system_info() -> str:
    """llama.cpp's own line about the processor features that it was built with."""
    return str(llama_cpp.llama_print_system_info().decode())


def has_risky_amx() -> bool:
    """Whether this build uses AMX, which crashes where GCC 12 compiled it (llama.cpp 20824)."""
    return "AMX_INT8 = 1" in system_info()


def offloads_to_gpu() -> bool:
    """Whether this build can put layers on a GPU."""
    if supports_rpc():  # then llama.cpp says yes, whether or not there is a GPU or a server
        return bool(gpus())
    return bool(llama_cpp.llama_supports_gpu_offload())


def supports_rpc() -> bool:
    """Whether this build can compute on RPC servers."""
    return bool(llama_cpp.llama_supports_rpc())


def gpus() -> list[int]:
    """This machine's GPUs as `ggml_backend_dev_t`, integrated ones where there is no other."""
    registry, base = ggml("ggml"), ggml("ggml-base")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    devices = [registry.ggml_backend_dev_get(i) for i in range(registry.ggml_backend_dev_count())]
    kinds = [base.ggml_backend_dev_type(device) for device in devices]
    wanted = _GPU if _GPU in kinds else _INTEGRATED_GPU
    return [device for device, kind in zip(devices, kinds, strict=True) if kind == wanted]


def ggml(name: str) -> ctypes.CDLL:
    """One of the libraries that llama.cpp computes with: `ggml`, `ggml-base`, `ggml-rpc`."""
    from llama_cpp import _ctypes_extensions, _ggml

    library: ctypes.CDLL = _ctypes_extensions.load_shared_library(name, _ggml.libggml_base_path)
    return library


def load(
    path: Path, *, vocab_only: bool = False, gpu_layers: int = -1, devices: Sequence[int] = ()
) -> Any:
    """A `llama_model *`, to be freed by the caller. Raises GGUFError, one line.

    `devices` are `ggml_backend_dev_t`, which get the layers in this order, by their free memory;
    none leaves the choice to llama.cpp.
    """
    if not gguf_header.tensor_count(path) and not vocab_only:
        raise GGUFError(f"{path} holds a vocabulary and no weights: give the model itself")
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = gpu_layers
    if devices:
        named = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
        params.devices = ctypes.addressof(named)
    if has_risky_amx():
        params.use_extra_bufts = False
        if not vocab_only:
            _log.warning(AMX_NOTICE)
    with ErrorLines() as errors:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = errors.reason() or "llama.cpp gives no reason"
        raise GGUFError(f"{path} cannot be loaded ({reason}): download or convert it again")
    return model
