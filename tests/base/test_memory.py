"""What a base model will take, from its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.base import memory
from cmc_local.base.model import BaseModel
from cmc_local.errors import GGUFError


def test_a_file_and_a_cache_for_each_sequence(tiny_gguf: Path) -> None:
    size = tiny_gguf.stat().st_size
    one = memory.estimate(tiny_gguf, context=256, sequences=1) - size
    assert one > 0
    assert memory.estimate(tiny_gguf, context=256, sequences=3) - size == 3 * one
    assert memory.estimate(tiny_gguf, context=512, sequences=1) - size == 2 * one
    # 2 layers, 2 heads for keys and values, of 16 numbers each, in halves
    trained = BaseModel(tiny_gguf)
    try:
        usual = memory.estimate(tiny_gguf, context=0, sequences=1)
        assert usual == memory.estimate(tiny_gguf, context=trained.n_ctx, sequences=1)
    finally:
        trained.close()


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("no")
    with pytest.raises(GGUFError):
        memory.estimate(tmp_path / "x.gguf", context=0, sequences=1)
