"""What lies still between the runs of a delta: its cache, and the inputs and logits of a step.

    Cache        keys and values of all slots, one buffer for each kind and layer
    HostSteps    inputs and logits in the host's memory, bound once for each span of slots
    DeviceSteps  inputs and logits on the device; a step can be captured as one CUDA graph

A captured graph replays the very kernels and addresses of its first runs, so all that changes from
step to step is the contents of its inputs. What a kernel takes from the host is frozen as well:
`total_sequence_length` is the context's there, an upper bound of every row, and how long each row
is comes from `seqlens_k`, which lies on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.delta.adapter import DeltaShape, Precision
from cmc_local.delta.library import ort

Logits = NDArray[np.float32]
_INPUTS = ("input_ids", "seqlens_k", "logit_positions")


class Cache:
    """Keys and values of all slots: one buffer for each kind and layer."""

    def __init__(
        self, shape: DeltaShape, slots: int, precision: Precision, device: str, device_id: int
    ) -> None:
        self._dtype = np.float16 if precision == "fp16" else np.float32
        self._shape = (slots, shape.kv_heads, shape.context, shape.head_dim)
        self.place = (device, device_id)
        self._arrays = [np.zeros(self._shape, self._dtype) for _ in range(2 * shape.layers)]
        self._buffers = [
            ort.OrtValue.ortvalue_from_numpy(array, device, device_id) for array in self._arrays
        ]
        self.on_cpu = device == "cpu"
        if not self.on_cpu:
            self._arrays.clear()  # were copied

    def binding(self, session: Any, first: int, count: int) -> Any:
        """A binding whose past and present are the slices of `count` slots from `first` on."""
        shape = (count, *self._shape[1:])
        offset = first * int(np.prod(self._shape[1:])) * np.dtype(self._dtype).itemsize
        binding = session.io_binding()
        for i, buffer in enumerate(self._buffers):
            name = f"{('key', 'value')[i % 2]}_{i // 2}"
            place = (*self.place, self._dtype, shape, buffer.data_ptr() + offset)
            binding.bind_input(f"past_{name}", *place)
            binding.bind_output(f"present_{name}", *place)
        return binding

    def copy(self, source: int, target: int, length: int) -> bool:
        """The first `length` positions of one slot into another; False where it is on a GPU."""
        for array in self._arrays:
            array[target, :, :length] = array[source, :, :length]
        return self.on_cpu


class Steps(Protocol):
    """Runs of one token for each of several adjacent slots: fill the arrays, then `run`."""

    ids: NDArray[np.int64]
    """(slots, 1) int64"""
    lengths: NDArray[np.int32]
    """(slots,) int32, each row's total length less one"""
    total: NDArray[np.int32]
    """(1,) int32, the longest row"""

    def run(self, first: int, last: int) -> Logits:
        """(last + 1 - first, V) float32 for what the arrays begin with, until the next run."""
        ...


class HostSteps:
    """Steps whose arrays are bound once for each span of slots."""

    def __init__(self, session: Any, cache: Cache, slots: int, vocabulary: int) -> None:
        self._session = session
        self._cache = cache
        self._bindings: dict[tuple[int, int], Any] = {}
        self.ids = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self.total = np.zeros(1, np.int32)
        self._positions = np.zeros(1, np.int64)
        self._logits = np.zeros((slots, 1, vocabulary), np.float32)

    def run(self, first: int, last: int) -> Logits:
        """One run; see `Steps`."""
        binding = self._bindings.get((first, last))
        if binding is None:
            binding = self._bindings[first, last] = self._bound(first, last + 1 - first)
        self._session.run_with_iobinding(binding)
        return self._logits[: last + 1 - first, 0]

    def _bound(self, first: int, count: int) -> Any:
        binding = self._cache.binding(self._session, first, count)
        for name, array in (
            ("input_ids", self.ids[:count]),
            ("seqlens_k", self.lengths[:count]),
            ("total_sequence_length", self.total),
            ("logit_positions", self._positions),
        ):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        logits = self._logits[:count]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding


@dataclass(frozen=True, eq=False)
class _Bound:
    """One span's binding, and what it is bound to."""

    binding: Any
    inputs: dict[str, Any]
    """OrtValues on the device, by name"""
    logits: Any
    """OrtValue on the device, (count, 1, V) float32"""
    options: Any
    """RunOptions with a number of its own for the span's captured graph, or None"""


class DeviceSteps:
    """Steps whose inputs and logits lie on the device; with `capture` as CUDA graphs."""

    def __init__(
        self,
        session: Any,
        cache: Cache,
        slots: int,
        vocabulary: int,
        context: int,
        *,
        capture: bool,
    ) -> None:
        self._session = session
        self._cache = cache
        self._vocabulary = vocabulary
        self._capture = capture
        self._spans: dict[tuple[int, int], _Bound] = {}
        self.ids = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self.total = np.zeros(1, np.int32)
        self._most = np.array([context], np.int32)

    def run(self, first: int, last: int) -> Logits:
        """One run; see `Steps`."""
        count = last + 1 - first
        if (first, last) not in self._spans:
            self._spans[first, last] = self._bound(first, count)
        bound = self._spans[first, last]
        bound.inputs["input_ids"].update_inplace(self.ids[:count])
        bound.inputs["seqlens_k"].update_inplace(self.lengths[:count])
        self._session.run_with_iobinding(bound.binding, bound.options)
        rows: Logits = bound.logits.numpy()
        return rows[:, 0]

    def _bound(self, first: int, count: int) -> _Bound:
        arrays: tuple[NDArray[Any], ...] = (
            self.ids[:count],
            self.lengths[:count],
            np.zeros(1, np.int64),
        )
        inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), *self._cache.place)
            for name, array in zip(_INPUTS, arrays, strict=True)
        }
        logits = ort.OrtValue.ortvalue_from_shape_and_type(
            (count, 1, self._vocabulary), np.float32, *self._cache.place
        )
        binding = self._cache.binding(self._session, first, count)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        total = self._most if self._capture else self.total
        binding.bind_input(
            "total_sequence_length", "cpu", 0, total.dtype, total.shape, total.ctypes.data
        )
        binding.bind_ortvalue_output("logits", logits)
        options = run_options(1 + len(self._spans)) if self._capture else None
        return _Bound(binding, inputs, logits, options)


def run_options(graph: int) -> Any:
    """Options of a run that is captured under this number; -1 leaves a run uncaptured."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
