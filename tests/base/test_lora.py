"""LoRA files on a base model: equal to merged weights, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from cmc_local.base.lora import LoraLike
from cmc_local.base.model import BaseModel
from cmc_local.errors import GGUFError, UsageError
from tiny_loras import Pairs, lora_gguf, merged, pairs

TOKENS = [1, 300, 301, 17, 244, 90]


@pytest.fixture(scope="module")
def learnt(tiny_folder: Path) -> Pairs:
    return pairs(tiny_folder)


@pytest.fixture(scope="module")
def lora(learnt: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_gguf(tmp_path_factory.mktemp("loras") / "lora.gguf", learnt)


def logits(gguf: Path, *loras: LoraLike) -> NDArray[np.float32]:
    """(len(TOKENS), V) float32"""
    with BaseModel(
        gguf, kv_type="f32", batch=16, context=64, threads=1, gpu_layers=0, loras=loras
    ) as base:
        base.decode(TOKENS, start=0, last_only=False)
        return np.stack([base.logits(i) for i in range(len(TOKENS))])


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_a_lora_is_its_product_merged_into_the_weights(
    scale: float, tiny_folder: Path, tiny_gguf: Path, learnt: Pairs, lora: Path, tmp_path: Path
) -> None:
    expected = logits(tiny_models.gguf_of(merged(tiny_folder, tmp_path / "merged", learnt, scale)))
    found = logits(tiny_gguf, (lora, scale))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - logits(tiny_gguf)).max() > 0.05 * np.abs(expected).max()


def test_several_add_up(tiny_gguf: Path, lora: Path) -> None:
    """0.75 + 0.5 - 0.25 = 1; the product enters a linear map."""
    found = logits(tiny_gguf, (lora, 0.75), (str(lora), 0.5), (lora, -0.25))
    expected = logits(tiny_gguf, (lora, 1.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_scale_zero_is_none_bit_for_bit(tiny_gguf: Path, lora: Path) -> None:
    np.testing.assert_array_equal(logits(tiny_gguf, (lora, 0.0)), logits(tiny_gguf))


def test_what_is_no_lora_is_refused(tiny_gguf: Path, learnt: Pairs, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="no LoRA"):
        logits(tiny_gguf, (tiny_gguf, 1.0))
    with pytest.raises(GGUFError, match="does not exist"):
        logits(tiny_gguf, (tmp_path / "none.gguf", 1.0))
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(GGUFError, match="is no GGUF file"):
        logits(tiny_gguf, (tmp_path / "text.gguf", 1.0))
    other_kind = lora_gguf(tmp_path / "kind.gguf", learnt, kind="control_vector")
    with pytest.raises(GGUFError, match="control_vector"):
        logits(tiny_gguf, (other_kind, 1.0))


def test_a_lora_of_another_model_is_refused(tiny_gguf: Path, learnt: Pairs, tmp_path: Path) -> None:
    other = lora_gguf(tmp_path / "other.gguf", learnt, architecture="qwen2")
    with pytest.raises(GGUFError, match="mismatch"):
        logits(tiny_gguf, (other, 1.0))
    wide = {name: (np.repeat(a, 2, axis=1), b) for name, (a, b) in learnt.items()}
    with pytest.raises(GGUFError, match="incorrect shape"):
        logits(tiny_gguf, (lora_gguf(tmp_path / "wide.gguf", wide), 1.0))


def test_a_damaged_lora_is_refused(tiny_gguf: Path, lora: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(lora.read_bytes()[:-600])
    with pytest.raises(GGUFError, match=r"cut\.gguf"):
        logits(tiny_gguf, (cut, 1.0))


def test_a_scale_is_a_finite_number(tiny_gguf: Path, lora: Path) -> None:
    with pytest.raises(UsageError, match="finite"):
        logits(tiny_gguf, (lora, float("nan")))
