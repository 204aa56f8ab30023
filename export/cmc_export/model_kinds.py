"""The architectures that a GGUF is trained and written as: llama, qwen2 and gemma3.

    llama    rows of Q and K lie in pairs, as llama.cpp rotates them; in PyTorch in halves of a head
    qwen2    Q, K and V have biases; rows lie alike
    gemma3   norms of Q and K, and behind attention and MLP; of six blocks one sees the whole text,
             five a window; llama.cpp's norms hold 1 more than PyTorch's

Knows names, shapes and orders; reads and writes no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cmc_export.delta_model import KeptPositions, LlamaForCausalLM
from cmc_export.gguf_file import interleaved
from cmc_local.base.gguf_header import Header

Rows = NDArray[np.float32]
Metadata = Mapping[str, Any]
"""What a GGUF says, the architecture's name taken off the keys."""

_OUTER: Final = r"(token_embd|output_norm|output)\.weight"
_BLOCK: Final = r"attn_(q|k|v|output|norm)|ffn_(gate|up|down|norm)"
_WINDOWED: Final = 6
"""Of so many blocks of a gemma3 all but the last see a window."""
_LARGEST_GEMMA: Final = 62
"""Blocks of the one gemma3 whose attention is scaled by width / heads."""


class Qwen2(KeptPositions, Qwen2ForCausalLM):  # type: ignore[misc]
    """A qwen2 of which some positions can be asked."""


class Gemma3(KeptPositions, Gemma3ForCausalLM):  # type: ignore[misc]
    """A gemma3 of which some positions can be asked."""


@dataclass(frozen=True)
class Kind:
    """One architecture."""

    name: str
    """`general.architecture` of its GGUF."""
    arch: gguf.MODEL_ARCH
    model: Callable[[PreTrainedConfig], PreTrainedModel]
    config: Callable[[Metadata, Mapping[str, Any]], PreTrainedConfig]
    """From a GGUF's metadata and what all kinds have in common."""
    tensors: str
    """A pattern of the names of its tensors."""
    in_pairs: bool = False
    """Whether rows of Q and K lie in pairs."""
    norm_shift: float = 0.0
    """What llama.cpp's norms hold more than PyTorch's."""

    def weight_name(self, place: str, layers: int) -> str:
        """A weight as a GGUF calls it.

        >>> KINDS["llama"].weight_name("model.layers.0.self_attn.q_proj.weight", 1)
        'blk.0.attn_q.weight'
        """
        return str(_names(self.arch, layers).get_name(place, try_suffixes=(".weight", ".bias")))

    def to_pytorch(self, rows: Rows, name: str, config: PreTrainedConfig) -> Rows:
        """A tensor of a GGUF in PyTorch's order and units."""
        if self.in_pairs and (heads := _heads(name, config)):
            return halves(rows, heads)
        return rows - np.float32(self.norm_shift) if _is_norm(name) and self.norm_shift else rows

    def to_gguf(self, rows: Rows, name: str, config: PreTrainedConfig) -> Rows:
        """The other way; a LoRA's rows too, under the name of the weight beside which it stands."""
        if self.in_pairs and (heads := _heads(name, config)):
            return interleaved(rows, heads)
        return rows + np.float32(self.norm_shift) if _is_norm(name) and self.norm_shift else rows


def halves(rows: Rows, heads: int) -> Rows:
    """Rows of Q or K, `(heads * head_dim, width)`, from pairs to two halves a head.

    With one head of 4 rows: rows 0, 1, 2, 3 become 0, 2, 1, 3. Undoes `gguf_file.interleaved`.
    """
    pairs = rows.shape[0] // heads // 2
    return rows.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def kind_of(model: PreTrainedModel) -> Kind:
    """The kind of a model that was read here."""
    by_type = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}
    return KINDS[by_type[model.config.model_type]]


def oddities(header: Header) -> list[str]:
    """What a GGUF of a known kind holds that its PyTorch model has no place for."""
    kind = KINDS[header.metadata["general.architecture"]]
    known = re.compile(kind.tensors)
    odd = [tensor.name for tensor in header.tensors if not known.fullmatch(tensor.name)]
    if header.metadata.get(f"{kind.name}.rope.scaling.type", "none") != "none":
        odd.append("scaled rotary positions")
    if header.metadata.get(f"{kind.name}.final_logit_softcapping"):
        odd.append("capped logits")
    return odd if header.tensors else [*odd, "no weights"]


def config_of(header: Header) -> PreTrainedConfig:
    """The sizes and settings of a GGUF's model. Raises KeyError for what it does not say."""
    kind = KINDS[header.metadata["general.architecture"]]
    found = {k.removeprefix(f"{kind.name}."): v for k, v in header.metadata.items()}
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    width, heads = int(found["embedding_length"]), int(found["attention.head_count"])
    common = {
        "vocab_size": shapes["token_embd.weight"][1],
        "hidden_size": width,
        "intermediate_size": int(found["feed_forward_length"]),
        "num_hidden_layers": int(found["block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(found.get("attention.head_count_kv", heads)),
        "head_dim": int(found.get("attention.key_length", width // heads)),
        "max_position_embeddings": int(found["context_length"]),
        "rms_norm_eps": float(found["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": found.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": found.get("tokenizer.ggml.eos_token_id"),
    }
    return kind.config(found, common)


def _rope(found: Metadata, usual: float = 10000.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": float(found.get("rope.freq_base", usual))}


def _llama(found: Metadata, common: Mapping[str, Any]) -> PreTrainedConfig:
    return LlamaConfig(**common, rope_parameters=_rope(found))


def _qwen2(found: Metadata, common: Mapping[str, Any]) -> PreTrainedConfig:
    fixed = common["hidden_size"] // common["num_attention_heads"]
    if common["head_dim"] != fixed:
        raise ValueError(f"heads of {common['head_dim']} rows, not of {fixed}")
    return Qwen2Config(**common, rope_parameters=_rope(found))


def _gemma3(found: Metadata, common: Mapping[str, Any]) -> PreTrainedConfig:
    layers, head_dim = common["num_hidden_layers"], common["head_dim"]
    a_head = common["hidden_size"] // common["num_attention_heads"]
    return Gemma3TextConfig(
        **common,
        query_pre_attn_scalar=a_head if layers == _LARGEST_GEMMA else head_dim,
        sliding_window=int(found["attention.sliding_window"]),
        layer_types=[
            "sliding_attention" if (i + 1) % _WINDOWED else "full_attention" for i in range(layers)
        ],
        rope_parameters={
            "full_attention": _rope(found, 1000000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )


def _tensors(more: str = "") -> str:
    return rf"{_OUTER}|blk\.\d+\.({_BLOCK})\.weight{more}"


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("llama", gguf.MODEL_ARCH.LLAMA, LlamaForCausalLM, _llama, _tensors(), in_pairs=True),
        Kind(
            "qwen2",
            gguf.MODEL_ARCH.QWEN2,
            Qwen2,
            _qwen2,
            _tensors(r"|blk\.\d+\.attn_(q|k|v)\.bias"),
        ),
        Kind(
            "gemma3",
            gguf.MODEL_ARCH.GEMMA3,
            Gemma3,
            _gemma3,
            _tensors(r"|blk\.\d+\.(attn_(q|k)_norm|post_attention_norm|post_ffw_norm)\.weight"),
            norm_shift=1.0,
        ),
    )
}


@cache
def _names(arch: gguf.MODEL_ARCH, layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(arch, layers)


def _heads(name: str, config: PreTrainedConfig) -> int:
    """Heads of a tensor whose rows are rotated, 0 for others."""
    if ".attn_q." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".attn_k." in name else 0


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")
