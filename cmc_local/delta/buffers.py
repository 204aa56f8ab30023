"""The memory of a delta that stays in its place: its cache, and what a step reads and writes.

Cache        keys and values of all slots, one buffer for each kind and layer
Steps        inputs and logits in the host's memory, bound once for each span of slots
DeviceSteps  the same on a GPU: inputs are written there before each run, logits read back
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmc_local.delta.adapter import DeltaShape, Precision
from cmc_local.delta.session import ort

Logits = NDArray[np.float32]


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


class Steps:
    """Runs of one token for each of several adjacent slots: fill the arrays, then `run`."""

    def __init__(self, session: Any, cache: Cache, slots: int, vocabulary: int) -> None:
        self._session = session
        self._cache = cache
        self._spans: dict[tuple[int, int], Any] = {}
        self.ids = np.zeros((slots, 1), np.int64)
        """(slots, 1) int64, one new token for each row"""
        self.lengths = np.zeros(slots, np.int32)
        """(slots,) int32, each row's total length less one"""
        self.total = np.zeros(1, np.int32)
        """(1,) int32, the length of the longest row"""
        self._positions = np.zeros(1, np.int64)
        self._logits = np.zeros((slots, 1, vocabulary), np.float32)

    def run(self, first: int, last: int) -> Logits:
        """(last + 1 - first, V) float32 for what the arrays begin with, until the next run."""
        binding = self._spans.get((first, last))
        if binding is None:
            binding = self._spans[first, last] = self._bound(first, last + 1 - first)
        self._session.run_with_iobinding(binding)
        return self._logits[: last + 1 - first, 0]

    def _bound(self, first: int, count: int) -> Any:
        binding = self._cache.binding(self._session, first, count)
        bind_array(binding, "input_ids", self.ids[:count])
        bind_array(binding, "seqlens_k", self.lengths[:count])
        bind_array(binding, "total_sequence_length", self.total)
        bind_array(binding, "logit_positions", self._positions)
        logits = self._logits[:count]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding


class DeviceSteps(Steps):
    """Steps whose inputs and logits lie on the device.

    ONNX Runtime copies a host array to the device when it is bound and not again at each run, so
    the tokens and lengths of a step are written to the device by hand.
    """

    def run(self, first: int, last: int) -> Logits:
        """As `Steps.run`."""
        count = last + 1 - first
        if (first, last) not in self._spans:
            self._spans[first, last] = self._bound(first, count)
        binding, ids, lengths, logits = self._spans[first, last]
        ids.update_inplace(self.ids[:count])
        lengths.update_inplace(self.lengths[:count])
        self._session.run_with_iobinding(binding)
        rows: Logits = logits.numpy()
        return rows[:, 0]

    def _bound(self, first: int, count: int) -> Any:
        """The span's binding, and the OrtValues of its tokens, lengths and logits."""
        binding = self._cache.binding(self._session, first, count)
        arrays = (self.ids[:count].copy(), self.lengths[:count].copy(), self._positions)
        place = self._cache.place
        values = [ort.OrtValue.ortvalue_from_numpy(array, *place) for array in arrays]
        names = ("input_ids", "seqlens_k", "logit_positions")
        for name, value in zip(names, values, strict=True):
            binding.bind_ortvalue_input(name, value)
        bind_array(binding, "total_sequence_length", self.total)
        shape = (count, 1, self._logits.shape[2])
        logits = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *place)
        binding.bind_ortvalue_output("logits", logits)
        return binding, values[0], values[1], logits


def bind_array(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an input to an array's own memory, which the graph then reads at each run."""
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
