"""Delta tokens -> shift: the ONNX delta on the CPU or a GPU; the only import of onnxruntime.

Knows token ids and caches, no text and no base model. One preallocated cache holds every slot;
past and present of a slot are the same memory, so a step copies nothing, and rolling back is
remembering a smaller length:

    layer i, key or value: (slots, kv_heads, S, head_dim), S = the delta's context in tokens
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cmc_local.adapter import GRAPHS, Adapter, Precision
from cmc_local.errors import AdapterError, DeviceError, UsageError
from cmc_local.onnx_file import objections
from cmc_local.vocabulary import Vocabulary, from_tokenizer_json

Device = Literal["cpu", "cuda"]
CHUNK = 256
"""Tokens that one run takes; a longer feed is cut, which bounds the memory of its activations."""
_CUDA_PROVIDER = "CUDAExecutionProvider"
_CPU_PROVIDER = "CPUExecutionProvider"
_PREFERRED: dict[Device, tuple[Precision, ...]] = {
    "cpu": ("int8", "fp32", "fp16"),
    "cuda": ("fp16",),  # its GroupQueryAttention knows 16 bits only; fp32 would go by the CPU
}


class ShiftSource(Protocol):
    """Anything that turns its own tokens into a shift and can roll back."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def context(self) -> int:
        """Tokens that one slot holds."""
        ...

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Append tokens; (min(rows, len(tokens)), V_delta) logits at the last positions."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget all tokens after the first `length`."""
        ...

    def length(self, slot: int) -> int:
        """Tokens that the slot holds now."""
        ...


class OnnxDelta:
    """An adapter's graph with the caches of `slots` independent token streams.

    `device` is auto, cpu, cuda or cuda:N. `auto` takes a usable GPU if the adapter has the fp16
    graph that its attention wants, else the CPU. Different slots may be fed from different
    threads; one slot belongs to one thread at a time.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        device: str = "auto",
        slots: int = 1,
        threads: int = 1,
        precision: Precision | None = None,
    ) -> None:
        if slots < 1 or threads < 1:
            raise UsageError(f"slots and threads must be at least 1, not {slots} and {threads}")
        self.vocabulary: Vocabulary = from_tokenizer_json(adapter.tokenizer_json)
        self._shape = adapter.settings.shape
        self.context: int = self._shape.context
        self.device, self.device_id = _choose_device(device, adapter, precision)
        self.precision: Precision = precision or _choose_precision(adapter, self.device)
        self._session = _session(adapter, self.precision, self.device, self.device_id, threads)
        self._dtype = np.float16 if self.precision == "fp16" else np.float32
        _check_signature(self._session, adapter, self.precision)
        self._lengths = [0] * slots
        self._cache = self._allocate(slots)
        self._bindings = [self._bind_cache(slot) for slot in range(slots)]

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's execution providers, the one that runs the graph first."""
        return tuple(self._session.get_providers())

    def length(self, slot: int) -> int:
        """Tokens that the slot holds now."""
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all tokens after the first `length`; free of cost."""
        if not 0 <= length <= self._lengths[slot]:
            raise UsageError(
                f"slot {slot} holds {self._lengths[slot]} delta tokens, cannot keep {length}"
            )
        self._lengths[slot] = length

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Append tokens to a slot; the logits at its last `rows` new positions.

        Returns a new array (min(rows, len(tokens)), V_delta) float32. Raises UsageError, and
        changes nothing, where the context is too short or a token is not in the vocabulary.
        """
        ids = np.asarray(tokens, np.int64).reshape(-1)
        self._check(slot, ids, rows)
        first_wanted = len(ids) - min(rows, len(ids))
        pieces = []
        for start in range(0, len(ids), CHUNK):
            stop = min(start + CHUNK, len(ids))
            begin = min(max(start, first_wanted), stop - 1)  # the graph gives one row at least
            positions = np.arange(begin - start, stop - start, dtype=np.int64)
            logits = self._run(slot, ids[start:stop], positions)
            if stop > first_wanted:
                pieces.append(logits)
        if not pieces:
            pieces.append(np.empty((0, self._shape.vocabulary), np.float32))
        found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return found[:, : len(self.vocabulary)]

    def _check(self, slot: int, ids: NDArray[np.int64], rows: int) -> None:
        if rows < 0:
            raise UsageError(f"rows must be at least 0, not {rows}")
        room = self.context - self._lengths[slot]
        if len(ids) > room:
            raise UsageError(
                f"{len(ids)} tokens do not fit the delta's context of {self.context}, where slot "
                f"{slot} holds {self._lengths[slot]}: truncate it first"
            )
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._shape.vocabulary):
            raise UsageError(
                f"token {ids.max() if ids.min() >= 0 else ids.min()} is not in the delta's "
                f"vocabulary of {self._shape.vocabulary}"
            )

    def _run(
        self, slot: int, ids: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """One run of the graph over (1, T) ids; (K, V) float32 logits at `positions` of them."""
        total = self._lengths[slot] + len(ids)
        binding = self._bindings[slot]
        logits = np.empty((1, len(positions), self._shape.vocabulary), np.float32)
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([total], np.int32))
        binding.bind_cpu_input("logit_positions", positions)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        self._lengths[slot] = total
        row: NDArray[np.float32] = logits[0]
        return row

    def _allocate(self, slots: int) -> list[Any]:
        """One OrtValue (slots, kv_heads, S, head_dim) for each key and value, all zero."""
        s = self._shape
        shape = (slots, s.kv_heads, s.context, s.head_dim)
        return [
            ort.OrtValue.ortvalue_from_numpy(
                np.zeros(shape, self._dtype), self.device, self.device_id
            )
            for _ in range(2 * s.layers)
        ]

    def _bind_cache(self, slot: int) -> Any:
        """A binding whose past and present are this slot's slice of every buffer."""
        s = self._shape
        shape = (1, s.kv_heads, s.context, s.head_dim)
        offset = slot * int(np.prod(shape)) * np.dtype(self._dtype).itemsize
        binding = self._session.io_binding()
        for i, buffer in enumerate(self._cache):
            name = f"{('key', 'value')[i % 2]}_{i // 2}"
            place = (self.device, self.device_id, self._dtype, shape, buffer.data_ptr() + offset)
            binding.bind_input(f"past_{name}", *place)
            binding.bind_output(f"present_{name}", *place)
        return binding


# --- opening the graph -----------------------------------------------------------------------


def _choose_precision(adapter: Adapter, device: Device) -> Precision:
    return next(p for p in _PREFERRED[device] if p in adapter.precisions)


def _session(
    adapter: Adapter, precision: Precision, device: Device, device_id: int, threads: int
) -> Any:
    """The graph in ONNX Runtime: from bytes that were checked, without spinning threads."""
    path = adapter.graph(precision)
    data = adapter.read(path.name)
    if reason := objections(data):
        raise AdapterError(f"{path} {reason}: export it anew with `cmc-local export`")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [_CPU_PROVIDER]
    if device == "cuda":
        providers.insert(0, (_CUDA_PROVIDER, {"device_id": device_id}))
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
    if device == "cuda" and session.get_providers()[0] != _CUDA_PROVIDER:
        raise DeviceError(
            f"cuda:{device_id} was not taken by ONNX Runtime: use --delta-device cpu, or look at "
            "`cmc-local doctor`"
        )
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


# --- the device ------------------------------------------------------------------------------


def _choose_device(asked: str, adapter: Adapter, precision: Precision | None) -> tuple[Device, int]:
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


def cuda_problem(device_id: int = 0) -> str | None:
    """Why ONNX Runtime cannot use a CUDA device, in a few words; None where it can.

    Asks the driver first and quietly: ONNX Runtime lists its CUDA provider with or without a GPU,
    and prints errors when it is asked for in vain.
    """
    if _CUDA_PROVIDER not in ort.get_available_providers():
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
