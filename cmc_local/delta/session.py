"""ONNX Runtime as the deltas use it: the device it runs on, and an adapter's graph opened in it.

The one file that imports onnxruntime, and with its telemetry off: builds of 1.31 look their maker
up and send events some seconds after they were loaded, unless the environment forbids it before
that; `disable_telemetry_events` comes too late on Linux. A program that imports onnxruntime before
this one has to set the variable itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from cmc_local.delta.adapter import GRAPHS, Adapter, Precision
from cmc_local.delta.onnx_file import objections
from cmc_local.errors import AdapterError, DeviceError, UsageError
from cmc_local.lifetime import trim_heap

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["Device", "Options", "choose_device", "choose_precision", "cuda_problem", "open_session"]
__all__ += ["ort", "quiet_options"]

Device = Literal["cpu", "cuda"]
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
_PREFERRED: dict[Device, tuple[Precision, ...]] = {
    "cpu": ("int8", "fp32", "fp16"),
    "cuda": ("fp16",),  # its GroupQueryAttention knows 16 bits only; fp32 would go by the CPU
}
Options = Callable[[int], ort.SessionOptions]
"""Threads -> how a session is to run."""

_SPINNING = {
    "intra_op.allow_spinning": "1",
    "intra_op.spin_duration_us": "20",  # microseconds; unbounded before ONNX Runtime 1.31
    "force_spinning_stop": "1",  # with the run's end
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


def quiet_options(threads: int) -> ort.SessionOptions:
    """A pinned number of threads that leave the cores to the base model.

    Between runs they sleep. Within one they spin for a moment where there is nothing to do: a run
    is dozens of short operators, and waking a thread takes as long as one of them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Otherwise each new length of a feed leaves a plan of its memory behind, for ever: some 15 kB.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what goes wrong is raised
    for name, value in _SPINNING.items():
        options.add_session_config_entry(f"session.{name}", value)
    return options


def open_session(
    adapter: Adapter,
    precision: Precision,
    device: Device,
    device_id: int,
    options: ort.SessionOptions,
) -> Any:
    """The graph as an ort.InferenceSession, made from the very bytes that were checked."""
    path = adapter.graph(precision)
    data = adapter.read(path.name)
    if reason := objections(data):
        raise AdapterError(f"{path} {reason}: export it anew with `cmc-local export`")
    providers: list[Any] = [CPU_PROVIDER]
    if device == "cuda":
        providers.insert(0, (CUDA_PROVIDER, {"device_id": str(device_id)}))
    try:
        session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = str(error).strip().splitlines()[0]
        if device == "cuda":
            raise DeviceError(
                f"cuda:{device_id} cannot run {path.name} ({reason}): use --delta-device cpu"
            ) from None
        raise AdapterError(
            f"{path} cannot be opened ({reason}): export it anew with `cmc-local export`"
        ) from None
    if device == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:
        raise DeviceError(
            f"cuda:{device_id} was not taken by ONNX Runtime: use --delta-device cpu, or look at "
            "`cmc-local doctor`"
        )
    _check_signature(session, adapter, precision)
    session._model_bytes = None  # kept for a fallback that is never taken: the whole file
    del data
    trim_heap()
    return session


def _check_signature(session: Any, adapter: Adapter, precision: Precision) -> None:
    """The graph must have the inputs and outputs that adapter.json's shape implies."""
    s = adapter.settings.shape
    names = [f"{kind}_{i}" for i in range(s.layers) for kind in ("key", "value")]
    cache = ["B", s.kv_heads, "S", s.head_dim]
    expected = {
        "input_ids": ["B", "T"],
        "seqlens_k": ["B"],
        "total_sequence_length": [1],
        "logit_positions": ["K"],
        "logits": ["B", "K", s.vocabulary],
        **{f"{time}_{name}": cache for name in names for time in ("past", "present")},
    }
    values = [*session.get_inputs(), *session.get_outputs()]
    if {value.name: value.shape for value in values} != expected:
        raise AdapterError(
            f"{adapter.path / GRAPHS[precision]} has other inputs or outputs than adapter.json's "
            "shape implies: export it anew with `cmc-local export`"
        )
