"""Which device runs the delta: the CPU, or a CUDA GPU where one is really usable."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from typing import Literal

from cmc_local.delta.adapter import Adapter, Precision
from cmc_local.delta.library import ort
from cmc_local.errors import DeviceError, UsageError

Device = Literal["cpu", "cuda"]
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
_PREFERRED: dict[Device, tuple[Precision, ...]] = {
    "cpu": ("int8", "fp32", "fp16"),
    "cuda": ("fp16",),  # its GroupQueryAttention knows 16 bits only; fp32 would go by the CPU
}


def choose_device(asked: str, adapter: Adapter, precision: Precision | None) -> tuple[Device, int]:
    """auto, cpu, cuda or cuda:N as a device and its number; DeviceError where it cannot be used."""
    if asked == "cpu":
        return "cpu", 0
    name, colon, number = asked.partition(":")
    suits = precision in (None, "fp16") and "fp16" in adapter.precisions
    if asked == "auto":
        return ("cuda", 0) if suits and cuda_problem() is None else ("cpu", 0)
    if name != "cuda" or (colon and not number.isdecimal()):
        raise UsageError(f"no delta device {asked!r}: use auto, cpu, cuda or cuda:N")
    if (problem := cuda_problem(int(number or 0))) is not None:
        raise DeviceError(f"{asked} cannot be used, {problem}: use --delta-device cpu")
    if not suits:
        raise DeviceError(
            f"{asked} runs an adapter's fp16 graph, {adapter.path} is to run "
            f"{precision or ', '.join(adapter.precisions)}: export it with --precision "
            "fp32,int8,fp16, or use --delta-device cpu"
        )
    return "cuda", int(number or 0)


def choose_precision(adapter: Adapter, device: Device) -> Precision:
    """The graph of an adapter that suits a device best."""
    return next(p for p in _PREFERRED[device] if p in adapter.precisions)


def cuda_problem(device_id: int = 0) -> str | None:
    """Why ONNX Runtime cannot use a CUDA device, in a few words; None where it can.

    Asks the driver first and quietly: ONNX Runtime lists its CUDA provider with or without a GPU,
    and prints errors when it is asked for in vain.
    """
    if CUDA_PROVIDER not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)"
    devices = _driver_devices()
    if device_id >= devices:
        return f"the CUDA driver shows {devices} devices" if devices else "no NVIDIA GPU was found"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ort.preload_dlls()  # finds the libraries that pip installed; says what it misses
    if sys.platform == "win32":
        return None
    for library in ("libcudart.so.13", "libcublasLt.so.13", "libcudnn.so.9"):
        try:
            ctypes.CDLL(library)
        except OSError:
            return f'{library} is missing (pip install "cmc-local[cuda]")'
    return None


def _driver_devices() -> int:
    """Devices that the CUDA driver shows; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
