"""The delta's ONNX graph: docs/design.md's inputs and outputs around GroupQueryAttention.

    input_ids (B, T), seqlens_k (B,), total_sequence_length (1,), logit_positions (K,),
    past_key_i, past_value_i (B, H_kv, S, D)  ->  logits (B, K, V), present_key_i, present_value_i

A step of a small delta is dozens of operators that take a few microseconds each, so the graph is
written node by node, with as few of them as ONNX Runtime's own operators allow: ten in a layer.

    Q, K, V -> attention -> out -> add and norm -> gate, up -> SiLU, times -> down -> add and norm

How a matrix is stored and multiplied is the affair of a `Storage`: the two here, and those of
`quantize.py`. What a node is made of: `onnx_nodes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cmc_export.delta_model import HEAD_STEP, shape_of
from cmc_export.onnx_nodes import OWN, Nodes, Shape
from cmc_local.delta.adapter import DeltaShape
from cmc_local.errors import InputError

Weight = NDArray[np.float32]


class Table(Protocol):
    """Embedding and output head over one matrix."""

    def embed(self, nodes: Nodes, ids: str) -> str:
        """(B, T) -> (B, T, width)."""
        ...

    def logits(self, nodes: Nodes, hidden: str) -> str:
        """(B, K, width) -> (B, K, V)."""
        ...


class Storage(Protocol):
    """How matrices are stored: given float32 weights of (out, in)."""

    dtype: type[np.floating[Any]]
    """Of the hidden states and of the cache."""

    def linear(self, nodes: Nodes, name: str, weight: Weight, x: str) -> str:
        """(B, T, in) -> (B, T, out)."""
        ...

    def table(self, nodes: Nodes, name: str, weight: Weight) -> Table:
        """Of a matrix (V, width)."""
        ...


@dataclass(frozen=True)
class Plain:
    """Weights as they are, in one float type."""

    dtype: type[np.floating[Any]]

    def linear(self, nodes: Nodes, name: str, weight: Weight, x: str) -> str:
        """See Storage; stored as (in, out), as MatMul wants it."""
        return nodes.add("MatMul", x, nodes.weight(name, weight.T.astype(self.dtype)))

    def table(self, nodes: Nodes, name: str, weight: Weight) -> Table:
        """See Storage."""
        return _PlainTable(nodes.weight(name, weight.astype(self.dtype)))


@dataclass(frozen=True)
class _PlainTable:
    weight: str

    def embed(self, nodes: Nodes, ids: str) -> str:
        return nodes.add("Gather", self.weight, ids)

    def logits(self, nodes: Nodes, hidden: str) -> str:
        # Reads the matrix as it lies; MatMul would want a transposed copy beside it.
        return nodes.add("FusedMatMul", hidden, self.weight, domain=OWN, transB=1)


FLOAT32 = Plain(np.float32)
FLOAT16 = Plain(np.float16)


def to_onnx(model: LlamaForCausalLM, context: int, storage: Storage = FLOAT32) -> bytes:
    """The ONNX file of a delta for `context` tokens; checked, without external data."""
    _check_config(model)
    return _Writer(model, context, storage).file()


class _Writer:
    """One delta written into one graph."""

    def __init__(self, model: LlamaForCausalLM, context: int, storage: Storage) -> None:
        self._model, self._storage = model, storage
        self._shape = shape_of(model.config)
        self._epsilon = float(model.config.rms_norm_eps)
        self._nodes = Nodes()
        self._rotary = [
            self._nodes.weight(name, table.numpy().astype(storage.dtype))
            for name, table in zip(("cos", "sin"), rotary_tables(model, context), strict=True)
        ]

    def file(self) -> bytes:
        """The whole graph."""
        nodes, model = self._nodes, self._model.model
        table, head = self._tables()
        x = table.embed(nodes, "input_ids")
        norms = [self._norm(f"layer_{i}_norm", one.input_layernorm) for i, one in self._layers()]
        norms.append(self._norm("norm", model.norm))
        normed = self._first_norm(x, norms[0])
        for i, layer in self._layers():
            mixed = self._attention(i, layer.self_attn, normed)
            between = self._norm(f"layer_{i}_mlp_norm", layer.post_attention_layernorm)
            normed, x = self._add_and_norm(x, mixed, between)
            normed, x = self._add_and_norm(x, self._mlp(i, layer.mlp, normed), norms[i + 1])
        # Gathered before the head, which is most of a small delta's arithmetic.
        kept = nodes.add("Gather", normed, "logit_positions", axis=1)
        logits = head.logits(nodes, kept)
        if self._storage.dtype is not np.float32:
            logits = nodes.add("Cast", logits, to=nodes.type_number(np.float32))
        nodes.rename(logits, "logits")
        return nodes.file(*_signature(self._shape, self._storage.dtype))

    def _tables(self) -> tuple[Table, Table]:
        """Embedding and head; one and the same where they share their matrix."""
        embedding = self._model.get_input_embeddings().weight.detach()
        head = self._model.get_output_embeddings().weight.detach()
        tied = embedding.data_ptr() == head.data_ptr() or torch.equal(embedding, head)
        table = self._storage.table(self._nodes, "table", _floats(embedding))
        if tied:
            return table, table
        return table, self._storage.table(self._nodes, "head", _floats(head))

    def _layers(self) -> Iterator[tuple[int, nn.Module]]:
        return enumerate(self._model.model.layers)

    def _first_norm(self, x: str, weight: str) -> str:
        """RMS norm, in the standard operators that ONNX Runtime fuses to one."""
        nodes, half = self._nodes, self._storage.dtype is not np.float32
        wide = nodes.add("Cast", x, to=nodes.type_number(np.float32)) if half else x
        square = nodes.add("Pow", wide, nodes.number(2.0))
        mean = nodes.add("ReduceMean", square, nodes.integers(-1), keepdims=1)
        root = nodes.add("Sqrt", nodes.add("Add", mean, nodes.number(self._epsilon)))
        scaled = nodes.add("Div", wide, root)
        if half:
            scaled = nodes.add("Cast", scaled, to=nodes.type_number(self._storage.dtype))
        return nodes.add("Mul", scaled, weight)

    def _add_and_norm(self, x: str, more: str, weight: str) -> tuple[str, str]:
        """(norm of x + more, x + more)."""
        return self._nodes.add_two(
            "SkipSimplifiedLayerNormalization",
            (x, more, weight),
            places=(0, 3),
            domain=OWN,
            epsilon=self._epsilon,
        )

    def _norm(self, name: str, norm: nn.Module) -> str:
        """The weight of an RMS norm, by its name."""
        return self._nodes.weight(name, _floats(norm.weight).astype(self._storage.dtype))

    def _attention(self, i: int, attention: nn.Module, x: str) -> str:
        """GroupQueryAttention over packed Q, K, V; it rotates, and writes the cache in place."""
        a, s = attention, self._shape
        qkv = self._projection(f"layer_{i}_qkv", [a.q_proj, a.k_proj, a.v_proj], x)
        mixed = self._nodes.add(
            "GroupQueryAttention",
            *(qkv, "", "", f"past_key_{i}", f"past_value_{i}"),
            *("seqlens_k", "total_sequence_length", *self._rotary),
            outputs=(f"mixed_{i}", f"present_key_{i}", f"present_value_{i}"),
            domain=OWN,
            num_heads=s.heads,
            kv_num_heads=s.kv_heads,
            do_rotary=1,
        )
        return self._projection(f"layer_{i}_out", [a.o_proj], mixed)

    def _mlp(self, i: int, mlp: nn.Module, x: str) -> str:
        """SiLU(gate) * up, then down."""
        gate = self._projection(f"layer_{i}_gate", [mlp.gate_proj], x)
        up = self._projection(f"layer_{i}_up", [mlp.up_proj], x)
        silu = self._nodes.add("QuickGelu", gate, domain=OWN, alpha=1.0)
        return self._projection(
            f"layer_{i}_down", [mlp.down_proj], self._nodes.add("Mul", silu, up)
        )

    def _projection(self, name: str, layers: Sequence[nn.Linear], x: str) -> str:
        """Linear layers on one input as one matrix: (B, T, in) -> (B, T, sum of outs)."""
        weight = np.concatenate([_floats(layer.weight) for layer in layers])
        y = self._storage.linear(self._nodes, name, weight, x)
        if all(layer.bias is None for layer in layers):
            return y
        parts = [
            np.zeros(layer.out_features, np.float32) if layer.bias is None else _floats(layer.bias)
            for layer in layers
        ]
        bias = np.concatenate(parts).astype(self._storage.dtype)
        return self._nodes.add("Add", y, self._nodes.weight(f"{name}_bias", bias))


def _signature(
    s: DeltaShape, dtype: type[np.floating[Any]]
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Inputs and outputs: name -> (element type, sizes or names of free axes)."""
    cache = (dtype, ("B", s.kv_heads, "S", s.head_dim))
    names = [f"{kind}_{i}" for i in range(s.layers) for kind in ("key", "value")]
    inputs: dict[str, Shape] = {
        "input_ids": (np.int64, ("B", "T")),
        "seqlens_k": (np.int32, ("B",)),
        "total_sequence_length": (np.int32, (1,)),
        "logit_positions": (np.int64, ("K",)),
        **{f"past_{name}": cache for name in names},
    }
    outputs: dict[str, Shape] = {
        "logits": (np.float32, ("B", "K", s.vocabulary)),
        **{f"present_{name}": cache for name in names},
    }
    return inputs, outputs


def rotary_tables(model: LlamaForCausalLM, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context, head_dim / 2) float32, of the model's own frequencies."""
    rotary = model.model.rotary_emb
    angles = torch.outer(torch.arange(context).double(), rotary.inv_freq.double())
    scaling = float(rotary.attention_scaling)
    return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()


def _floats(weight: Tensor) -> Weight:
    found: Weight = weight.detach().float().numpy()
    return found


def _check_config(model: LlamaForCausalLM) -> None:
    config = model.config
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise InputError(f"rotary scaling {kind!r} changes with the length: use a fixed one")
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(f"activation {config.hidden_act!r} is not SiLU: not a llama delta")
    if shape_of(config).head_dim % HEAD_STEP:
        raise InputError(
            f"the delta's heads of {shape_of(config).head_dim} are no multiple of {HEAD_STEP}, "
            "which ONNX Runtime's attention asks for: train one with other heads"
        )
