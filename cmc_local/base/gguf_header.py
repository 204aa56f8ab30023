"""A GGUF file's header: its metadata and its tensors' names, shapes and types; no weights.

Layout (GGUF specification, versions 2 and 3, little-endian): magic, version, number of tensors,
number of metadata entries, the entries, then one record for each tensor. Everything that llama.cpp
knows better (vocabulary, tokenisation) is asked of llama.cpp, in `base/vocabulary.py`.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from cmc_local.errors import GGUFError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes of which the place of a weight is a multiple, where the file names no other number."""
MAX_ENTRIES = 1_000_000
"""More metadata entries or tensors than any model has: the file is damaged."""

_STRING, _ARRAY = 8, 9
_SCALARS = {
    code: struct.Struct("<" + letter)
    for code, letter in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# fmt: off
_TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
# fmt: on

Value = int | float | bool | str


@dataclass(frozen=True)
class Array:
    """A list in the metadata of which only the length was read (vocabularies are long)."""

    length: int


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Sizes as GGUF gives them, the row's length first."""
    type: str
    """`F16`, `Q4_K`, ...; `type 99` for one unknown here."""
    begins: int = field(default=0, compare=False)
    """Where its weights begin, bytes after the place where all weights do."""


@dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]
    """`Value` or `Array` by key; a list of values where lists were asked for."""
    tensors: tuple[Tensor, ...]
    weights_at: int = 0
    """Where the weights begin, bytes from the file's beginning."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def tensor_types(self) -> dict[str, int]:
        """How many tensors there are of each type, the most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())


def tensor_count(path: Path) -> int:
    """How many tensors a GGUF holds, from its first 24 bytes; 0 in a vocabulary alone.

    Raises GGUFError for a missing file and for one that is no GGUF.
    """
    return _counts(_beginning(path), path)[0]


def read(path: Path, *, lists: bool | Container[str] = False) -> Header:
    """The whole header. Raises GGUFError for a missing, damaged or other kind of file.

    With `lists` the metadata's lists are there whole, not their lengths alone: all of them, or
    those of these keys.
    """
    tensors, entries = _counts(_beginning(path), path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            cursor = _Cursor(data, 24)
            metadata: dict[str, Any] = {}
            for _ in range(entries):
                key = cursor.text()
                whole = lists if isinstance(lists, bool) else key in lists
                metadata[key] = cursor.value(cursor.u32(), whole=whole)
            found = tuple(cursor.tensor() for _ in range(tensors))
            step = metadata.get("general.alignment", ALIGNMENT)
            return Header(metadata, found, -(-cursor.at // step) * step)
        except (struct.error, KeyError, OverflowError, TypeError, ZeroDivisionError):
            raise GGUFError(
                f"{path} is damaged or cut off in its header: download or copy it again"
            ) from None


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(24)
    except FileNotFoundError:
        raise GGUFError(f"{path} does not exist: give the path of a GGUF model") from None
    except IsADirectoryError:
        raise GGUFError(f"{path} is a folder: give the .gguf file in it") from None
    except OSError as error:
        raise GGUFError(f"{path} cannot be read: {error.strerror or error}") from None


def _counts(start: bytes, path: Path) -> tuple[int, int]:
    """Numbers of tensors and of metadata entries."""
    if start[:4] != MAGIC:
        raise GGUFError(
            f"{path} is no GGUF file: give one, or convert the model with llama.cpp first"
        )
    if len(start) < 24:
        raise GGUFError(f"{path} is cut off after {len(start)} bytes: download or copy it again")
    version = _U32.unpack_from(start, 4)[0]
    tensors, entries = _U64.unpack_from(start, 8)[0], _U64.unpack_from(start, 16)[0]
    if version not in VERSIONS:
        raise GGUFError(f"{path} is GGUF version {version}, not 2 or 3: convert the model anew")
    if max(tensors, entries) > MAX_ENTRIES:
        raise GGUFError(f"{path} is damaged in its header: download or copy it again")
    return tensors, entries


class _Cursor:
    """Reads one field after the other; running past the end raises struct.error."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data, self._at = data, at

    @property
    def at(self) -> int:
        """Bytes from the file's beginning."""
        return self._at

    def _scalar(self, kind: struct.Struct) -> int | float | bool:
        (value,) = kind.unpack_from(self._data, self._at)
        self._at += kind.size
        result: int | float | bool = value
        return result

    def u32(self) -> int:
        return int(self._scalar(_U32))

    def u64(self) -> int:
        return int(self._scalar(_U64))

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise struct.error

    def text(self) -> str:
        size = self.u64()
        self._skip(size)
        return self._data[self._at - size : self._at].decode("utf-8", "replace")

    def value(self, kind: int, *, whole: bool) -> Any:
        """A `Value`, an `Array`, or where the whole of it is wanted a list."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(whole)
        return self._scalar(_SCALARS[kind])

    def _array(self, whole: bool) -> Array | list[Any]:
        kind, length = self.u32(), self.u64()
        if kind in _SCALARS:
            begin, size = self._at, length * _SCALARS[kind].size
            self._skip(size)
            found = _SCALARS[kind].iter_unpack(self._data[begin : self._at]) if whole else ()
            values: list[Any] = [value for (value,) in found]
        elif kind == _STRING:
            values = self._strings(length, whole)
        else:
            values = [self.value(kind, whole=whole) for _ in range(length)]
        return values if whole else Array(length)

    def _strings(self, length: int, whole: bool) -> list[str]:
        """Of a vocabulary there are hundreds of thousands: one loop, nothing called in vain."""
        data, at, size_at, found = self._data, self._at, _U64.unpack_from, []
        for _ in range(length):
            (size,) = size_at(data, at)
            at += 8 + size
            if whole:
                found.append(data[at - size : at].decode("utf-8", "replace"))
        self._at = at
        self._skip(0)
        return found

    def tensor(self) -> Tensor:
        name = self.text()
        shape = tuple(self.u64() for _ in range(self.u32()))
        code = self.u32()
        begins = self.u64()
        return Tensor(name, shape, _TENSOR_TYPES.get(code, f"type {code}"), begins)
