"""The `llama_batch` in which spans (`span.py`) are handed to llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmc_local.base.library import llama_cpp
from cmc_local.base.span import Span


class LlamaBatch:
    """The `llama_batch` of a context, its arrays owned by numpy and filled anew each time."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        first, step = self._sequences.ctypes.data, self._sequences.itemsize
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._pointers = (pointer * size)(
            *(ctypes.cast(first + step * i, pointer) for i in range(size))
        )
        self.struct: Any = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(pointer),
            embd=None,
            pos=self._positions.ctypes.data_as(pointer),
            n_seq_id=self._counts.ctypes.data_as(pointer),
            seq_id=self._pointers,
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, spans: Sequence[Span]) -> None:
        """Hold these spans, which must fit, in place of the former ones."""
        at = 0
        for span in spans:
            end = at + len(span.tokens)
            self._tokens[at:end] = span.tokens
            self._positions[at:end] = np.arange(span.start, span.end)
            self._sequences[at:end] = span.sequence
            self._wanted[at:end] = 0
            outputs = range(end - at - 1, end - at) if span.outputs is None else span.outputs
            self._wanted[at + outputs.start : at + outputs.stop] = 1
            at = end
        self.struct.n_tokens = at
