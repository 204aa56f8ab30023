"""A llama in plain PyTorch: no cache, one sequence, float64.

Weights are a dict under Hugging Face's short names, matrices (out, in), Q and K in the two-halves
rotary layout:

    embed (V, width), head (V, width), norm (width,), and for each layer i
    i.in_norm, i.q, i.k, i.v, i.o, i.post_norm, i.gate, i.up, i.down
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor

_GGUF_NAMES = {
    "in_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "post_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_FOLDER_NAMES = {
    "in_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True, eq=False)
class Llama:
    """A model and its sizes."""

    weights: Mapping[str, Tensor]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    theta: float

    def logits(self, tokens: Sequence[int], last: int | None = None) -> NDArray[np.float64]:
        """(T, V) float64, or the last rows of it alone: logits after each token."""
        with torch.no_grad():
            x = self.weights["embed"][list(tokens)]  # (T, width)
            for i in range(self.layers):
                x = x + self._attention(i, self._norm(f"{i}.in_norm", x))
                x = x + self._mlp(i, self._norm(f"{i}.post_norm", x))
            x = x if last is None else x[-last:]
            return (self._norm("norm", x) @ self.weights["head"].T).numpy()

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean = (x * x).mean(-1, keepdim=True)
        return x / torch.sqrt(mean + self.epsilon) * self.weights[name]

    def _attention(self, i: int, x: Tensor) -> Tensor:
        length = len(x)
        q = self._rotated((x @ self.weights[f"{i}.q"].T).view(length, self.heads, self.head_dim))
        k = self._rotated((x @ self.weights[f"{i}.k"].T).view(length, self.kv_heads, self.head_dim))
        v = (x @ self.weights[f"{i}.v"].T).view(length, self.kv_heads, self.head_dim)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = []
        for head in range(self.heads):
            shared = head * self.kv_heads // self.heads
            scores = q[:, head] @ k[:, shared].T / self.head_dim**0.5  # (T, T)
            scores = scores.masked_fill(later, -torch.inf)
            mixed.append(torch.softmax(scores, -1) @ v[:, shared])
        return torch.cat(mixed, -1) @ self.weights[f"{i}.o"].T

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary positions on (T, heads, head_dim): dimension j turns with j + head_dim / 2."""
        half = self.head_dim // 2
        pace = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * pace
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        gate = x @ self.weights[f"{i}.gate"].T
        up = x @ self.weights[f"{i}.up"].T
        return (gate * torch.sigmoid(gate) * up) @ self.weights[f"{i}.down"].T


def from_gguf(path: Path) -> Llama:
    """The model of a GGUF file, its tensors dequantised."""
    reader = gguf.GGUFReader(path)
    number = {
        name.removeprefix("llama."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("llama.")
    }
    tensors = {
        tensor.name: _double(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
                [int(size) for size in reversed(tensor.shape)]
            )
        )
        for tensor in reader.tensors
    }
    heads, kv_heads = number["attention.head_count"], number["attention.head_count_kv"]
    weights = {
        "embed": tensors["token_embd.weight"],
        "head": tensors.get("output.weight", tensors["token_embd.weight"]),
        "norm": tensors["output_norm.weight"],
    }
    for i in range(number["block_count"]):
        for ours, theirs in _GGUF_NAMES.items():
            weights[f"{i}.{ours}"] = tensors[f"blk.{i}.{theirs}.weight"]
        weights[f"{i}.q"] = halves(weights[f"{i}.q"], heads)
        weights[f"{i}.k"] = halves(weights[f"{i}.k"], kv_heads)
    return Llama(
        weights,
        number["block_count"],
        heads,
        kv_heads,
        number["attention.key_length"],
        number["attention.layer_norm_rms_epsilon"],
        number["rope.freq_base"],
    )


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of Q or K from llama.cpp's pairs to two halves a head: 0, 1, 2, 3 become 0, 2, 1, 3."""
    order = []
    size = len(rows) // heads
    for head in range(heads):
        order += [head * size + at for at in range(0, size, 2)]
        order += [head * size + at for at in range(1, size, 2)]
    return rows[order]


def from_onnx(path: Path, *, heads: int, kv_heads: int, theta: float = 10000.0) -> Llama:
    """The delta whose fp32 graph this is; of the file only the weights and epsilon are used."""
    graph = onnx.load(path, load_external_data=False).graph
    found = {entry.name: _double(numpy_helper.to_array(entry)) for entry in graph.initializer}
    if "norm" in found:
        found = _former_names(found)
    weights = {"norm": found["norm.weight"], "head": found["head.weight"]}
    weights["embed"] = found.get("table.weight", found["head.weight"])
    layers = sum(name.endswith("before_mlp.weight") for name in found)
    for i in range(layers):
        layer = {
            name.removeprefix(f"layers.{i}.").removesuffix(".weight"): tensor
            for name, tensor in found.items()
            if name.startswith(f"layers.{i}.")
        }
        qkv, gate_up = layer["attention.qkv.product"].T, layer["mlp.gate_up.product"].T
        head_dim = len(qkv) // (heads + 2 * kv_heads)
        parts = torch.split(qkv, [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        gate, up = gate_up.chunk(2)
        weights |= {
            f"{i}.in_norm": layer["before_attention"],
            f"{i}.q": parts[0],
            f"{i}.k": parts[1],
            f"{i}.v": parts[2],
            f"{i}.o": layer["attention.out.product"].T,
            f"{i}.post_norm": layer["before_mlp"],
            f"{i}.gate": gate,
            f"{i}.up": up,
            f"{i}.down": layer["mlp.down.product"].T,
        }
    scalars = {float(value) for value in found.values() if value.numel() == 1}
    (epsilon,) = (value for value in scalars if 0 < value < 0.1)
    return Llama(weights, layers, heads, kv_heads, head_dim, epsilon, theta)


def _former_names(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names that graphs had before they were written node by node.

    The bundled world's adapters have those.
    """
    names = {"norm": "norm.weight", "table": "table.weight", "head": "head.weight"}
    renamed = {names.get(name, name): tensor for name, tensor in found.items()}
    renamed.setdefault("head.weight", renamed["table.weight"])
    for i in range(sum(name.endswith("_qkv") for name in found)):
        old, new = f"layer_{i}_", f"layers.{i}."
        renamed[f"{new}before_attention.weight"] = found[f"{old}norm"]
        renamed[f"{new}before_mlp.weight"] = found[f"{old}mlp_norm"]
        renamed[f"{new}attention.qkv.product.weight"] = found[f"{old}qkv"]
        renamed[f"{new}attention.out.product.weight"] = found[f"{old}out"]
        gate_up = torch.cat([found[f"{old}gate"], found[f"{old}up"]], dim=1)
        renamed[f"{new}mlp.gate_up.product.weight"] = gate_up
        renamed[f"{new}mlp.down.product.weight"] = found[f"{old}down"]
    return renamed


def from_folder(folder: Path, config: Mapping[str, object]) -> Llama:
    """The model of a Hugging Face llama folder; `config` is its config.json."""
    tensors = {
        name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    embed = tensors["model.embed_tokens.weight"]
    weights = {
        "embed": embed,
        "head": tensors.get("lm_head.weight", embed),
        "norm": tensors["model.norm.weight"],
    }
    layers, heads = int(str(config["num_hidden_layers"])), int(str(config["num_attention_heads"]))
    for i in range(layers):
        for ours, theirs in _FOLDER_NAMES.items():
            weights[f"{i}.{ours}"] = tensors[f"model.layers.{i}.{theirs}.weight"]
    return Llama(
        weights,
        layers,
        heads,
        int(str(config["num_key_value_heads"])),
        len(weights["0.q"]) // heads,
        float(str(config["rms_norm_eps"])),
        10000.0,
    )


def folder_tensors(model: Llama) -> dict[str, Tensor]:
    """A model's weights under their names in a Hugging Face folder, the head included."""
    named = {
        "model.embed_tokens.weight": model.weights["embed"],
        "model.norm.weight": model.weights["norm"],
        "lm_head.weight": model.weights["head"],
    }
    for i in range(model.layers):
        for ours, theirs in _FOLDER_NAMES.items():
            named[f"model.layers.{i}.{theirs}.weight"] = model.weights[f"{i}.{ours}"]
    return named


def _double(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))
