"""llama.cpp's quantiser: fewer bits, nearly the same logits, or one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmc_local.base import gguf_header
from cmc_local.base.model import BaseModel
from cmc_local.base.quantize import quantize
from cmc_local.errors import GGUFError


def logits(path: Path) -> np.ndarray:
    with BaseModel(path, context=32, threads=1) as base:
        base.decode([1, 5, 9, 12], start=0)
        return base.logits().copy()


def test_a_smaller_file_with_nearly_the_same_logits(tiny_gguf: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    quantize(tiny_gguf, small, "Q8_0", threads=1)
    assert small.stat().st_size < 0.6 * tiny_gguf.stat().st_size
    assert gguf_header.read(small).tensor_types["Q8_0"] > 0
    before, after = logits(tiny_gguf), logits(small)
    assert np.corrcoef(before, after)[0, 1] > 0.99
    assert not np.array_equal(before, after)
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


def test_what_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"no model at all")
    with pytest.raises(GGUFError, match="cannot be quantised"):
        quantize(wrong, tmp_path / "out.gguf", "Q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.gguf"]
