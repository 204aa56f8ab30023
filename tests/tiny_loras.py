"""Tiny LoRAs with random weights, as GGUF files; and the model folder that each is merged into."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cmc_export.gguf_file import interleaved

RANK, ALPHA, HEADS = 4, 6.0, 4
_PLACES = {
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
}
"""What the LoRA changes, under its Hugging Face and its GGUF name."""

Pairs = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def pairs(folder: Path, seed: int = 0) -> Pairs:
    """A, (RANK, in) float32, and B, (out, RANK) float32, of each place; B A is of W's size."""
    random = np.random.default_rng(seed)
    weights = load_file(folder / "model.safetensors")
    found: Pairs = {}
    for name in _PLACES:
        out, width = weights[name].shape
        found[name] = (
            random.normal(0, 0.3, (RANK, width)).astype(np.float32),
            random.normal(0, 0.3, (out, RANK)).astype(np.float32),
        )
    return found


def merged(folder: Path, target: Path, pairs: Pairs, scale: float = 1.0) -> Path:
    """The model whose weights are W + scale * ALPHA / RANK * B A."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    weights = load_file(target / "model.safetensors")
    for name, (a, b) in pairs.items():
        weights[name] = weights[name] + np.float32(scale * ALPHA / RANK) * (b @ a)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def lora_gguf(path: Path, pairs: Pairs, *, kind: str = "lora", architecture: str = "llama") -> Path:
    """The pairs as a LoRA GGUF; the rows of Q's B are permuted as those of Q itself are."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, kind)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    for name, (a, b) in pairs.items():
        rows = interleaved(b, HEADS) if "q_proj" in name else b
        writer.add_tensor(f"{_PLACES[name]}.lora_a", a)
        writer.add_tensor(f"{_PLACES[name]}.lora_b", np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
