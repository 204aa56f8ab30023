"""The delta's ONNX graph: DESIGN.md's inputs and outputs around GroupQueryAttention.

    input_ids (B, T), seqlens_k (B,), total_sequence_length (1,), logit_positions (K,),
    past_key_i, past_value_i (B, H_kv, S, D)  ->  logits (B, K, V), present_key_i, present_value_i

A `DeltaGraph` holds the weights of a LlamaForCausalLM in the layout that runs fast: Q, K and V in
one matrix, gate and up in one. It exists to be exported; the attention is ONNX Runtime's own
operator and yields nothing in PyTorch. How a matrix is stored and multiplied is the affair of
`Linear` and `Table` here, and of `quantize.py` for 8 bits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import onnx
import onnxscript  # noqa: F401  # the exporter's other half: missing, it is said at import
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cmc_export.delta_model import HEAD_STEP, shape_of
from cmc_local.adapter import DeltaShape
from cmc_local.errors import InputError

OPSET = 20


class TableLike(Protocol):
    """Embedding and output head over one matrix."""

    def embed(self, ids: Tensor) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Storage:
    """How matrices are stored: classes that are built from a float32 weight of (out, in)."""

    linear: type[nn.Module]
    table: type[nn.Module]
    dtype: torch.dtype = torch.float32
    """Type of the hidden states and of the cache."""


class Linear(nn.Module):
    """`x @ weight.T` for a weight of (out, in); stored as (in, out), as MatMul wants it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Table(nn.Module):
    """One matrix of (V, width), for look-ups and for the output head."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.contiguous())

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, width)."""
        return nn.functional.embedding(ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, K, width) -> (B, K, V).

        Gemm reads the matrix as it lies; MatMul would store a transposed copy beside it.
        """
        batch, count, width = hidden.shape
        flat = torch.onnx.ops.symbolic(
            "Gemm",
            (hidden.reshape(-1, width), self.weight),
            attrs={"transB": 1},
            dtype=hidden.dtype,
            shape=(batch * count, self.weight.shape[0]),
        )
        return flat.reshape(batch, count, self.weight.shape[0])


FLOAT32 = Storage(Linear, Table)
FLOAT16 = Storage(Linear, Table, torch.float16)


class Norm(nn.Module):
    """RMS norm, written in the operators that ONNX Runtime fuses to one."""

    def __init__(self, norm: nn.Module, storage: Storage) -> None:
        super().__init__()
        self.weight = nn.Buffer(norm.weight.detach().to(storage.dtype))
        self.epsilon = float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        mean = wide.pow(2).mean(-1, keepdim=True)
        return (wide / torch.sqrt(mean + self.epsilon)).to(x.dtype) * self.weight


class Projection(nn.Module):
    """Several linear layers on one input as one matrix: (B, T, in) -> (B, T, sum of outs)."""

    def __init__(self, layers: list[nn.Linear], storage: Storage) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.detach().float() for layer in layers])
        self.product = storage.linear(weight.to(storage.dtype))
        self.bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            parts = [
                torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
                for layer in layers
            ]
            self.bias = nn.Buffer(torch.cat([p.float() for p in parts]).to(storage.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.product(x)
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """GroupQueryAttention over packed Q, K, V; it rotates, and writes the cache in place."""

    def __init__(self, attention: nn.Module, shape: DeltaShape, storage: Storage) -> None:
        super().__init__()
        a = attention
        self.qkv = Projection([a.q_proj, a.k_proj, a.v_proj], storage)
        self.out = Projection([a.o_proj], storage)
        self.shape = shape

    def forward(
        self, x: Tensor, lengths: list[Tensor], rotary: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, _ = x.shape
        s = self.shape
        mixed, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (self.qkv(x), None, None, *past, *lengths, *rotary),
            attrs={"num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": 1},
            dtypes=(x.dtype, x.dtype, x.dtype),
            shapes=((batch, count, s.heads * s.head_dim), past[0].shape, past[1].shape),
            version=1,
        )
        return self.out(mixed), key, value


class FeedForward(nn.Module):
    """SiLU(gate) * up, then down."""

    def __init__(self, mlp: nn.Module, storage: Storage) -> None:
        super().__init__()
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], storage)
        self.down = Projection([mlp.down_proj], storage)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(gate * torch.sigmoid(gate) * up)
        return y


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, layer: nn.Module, shape: DeltaShape, storage: Storage) -> None:
        super().__init__()
        self.before_attention = Norm(layer.input_layernorm, storage)
        self.attention = Attention(layer.self_attn, shape, storage)
        self.before_mlp = Norm(layer.post_attention_layernorm, storage)
        self.mlp = FeedForward(layer.mlp, storage)

    def forward(
        self, x: Tensor, lengths: list[Tensor], rotary: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, key, value = self.attention(self.before_attention(x), lengths, rotary, past)
        x = x + mixed
        return x + self.mlp(self.before_mlp(x)), key, value


class DeltaGraph(nn.Module):
    """The whole delta, rotary tables for `context` positions included."""

    def __init__(self, model: LlamaForCausalLM, context: int, storage: Storage = FLOAT32) -> None:
        super().__init__()
        _check_config(model)
        shape = shape_of(model.config)
        embedding = model.get_input_embeddings().weight.detach()
        head = model.get_output_embeddings().weight.detach()
        tied = embedding.data_ptr() == head.data_ptr() or torch.equal(embedding, head)
        self.table = storage.table(embedding.float().to(storage.dtype))
        self.head = self.table if tied else storage.table(head.float().to(storage.dtype))
        self.layers = nn.ModuleList(Layer(x, shape, storage) for x in model.model.layers)
        self.norm = Norm(model.model.norm, storage)
        cos, sin = rotary_tables(model, context)
        self.cos = nn.Buffer(cos.to(storage.dtype))
        self.sin = nn.Buffer(sin.to(storage.dtype))
        self.shape = shape
        self.dtype = storage.dtype

    def forward(
        self,
        input_ids: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        logit_positions: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        lengths, rotary = [seqlens_k, total_sequence_length], [self.cos, self.sin]
        x: Tensor = self.table.embed(input_ids)
        present = []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, lengths, rotary, past[2 * i : 2 * i + 2])
            present += [key, value]
        # Gathered before norm and head: the head is most of a small delta's arithmetic.
        logits: Tensor = self.head.logits(self.norm(x.index_select(1, logit_positions)))
        return logits.to(torch.float32), *present


def rotary_tables(model: LlamaForCausalLM, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context, head_dim / 2) float32, of the model's own frequencies."""
    rotary = model.model.rotary_emb
    angles = torch.outer(torch.arange(context).double(), rotary.inv_freq.double())
    scaling = float(rotary.attention_scaling)
    return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()


def to_onnx(model: LlamaForCausalLM, context: int, storage: Storage = FLOAT32) -> bytes:
    """The ONNX file of a delta for `context` tokens; checked, without external data."""
    graph = DeltaGraph(model, context, storage).eval()
    names = [f"{kind}_{i}" for i in range(graph.shape.layers) for kind in ("key", "value")]
    batch, new, capacity = 2, 3, 8  # sizes other than 1 and from each other: all stay free
    past_shape = (batch, graph.shape.kv_heads, capacity, graph.shape.head_dim)
    example = (
        torch.zeros(batch, new, dtype=torch.int64),
        torch.full((batch,), 4, dtype=torch.int32),
        torch.tensor([5], dtype=torch.int32),
        torch.zeros(2, dtype=torch.int64),
        [torch.zeros(past_shape, dtype=graph.dtype) for _ in names],
    )
    free = ({0: "B", 1: "T"}, {0: "B"}, None, {0: "K"}, [{0: "B", 2: "S"} for _ in names])
    with _quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            dynamic_shapes=free,
            input_names=[
                *("input_ids", "seqlens_k", "total_sequence_length", "logit_positions"),
                *(f"past_{name}" for name in names),
            ],
            output_names=["logits", *(f"present_{name}" for name in names)],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return _finished(program.model_proto)


def _finished(proto: onnx.ModelProto) -> bytes:
    """Without the exporter's notes on its source (they hold paths), checked."""
    proto.doc_string = proto.graph.doc_string = ""
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.producer_name, proto.producer_version = "cmc-local", ""
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


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


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """The exporter speaks of its own absent parts; none of it is the user's affair."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
