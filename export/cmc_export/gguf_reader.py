"""A llama's GGUF as a model in PyTorch: the way back from `gguf_file`.

    model = read("base.gguf")        # float32, whatever the file's tensors are

Quantised weights become the numbers that llama.cpp computes with, and rows of Q and K go from the
interleaved rotary layout back to two halves a head. Only plain llama models are read; what such a
model has no place for (biases, experts, scaled positions) is refused. Knows no tokenizer.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig

from cmc_export.delta_model import LlamaForCausalLM
from cmc_local import base_header
from cmc_local.base_header import Header
from cmc_local.errors import GGUFError

_PLAIN: Final = re.compile(
    r"(token_embd|output_norm|output|"
    r"blk\.\d+\.(attn_(q|k|v|output|norm)|ffn_(gate|up|down|norm)))\.weight"
)


def read(path: Path) -> LlamaForCausalLM:
    """The model, float32, in eval mode. Raises GGUFError for what is no plain llama."""
    header = base_header.read(path)
    _refuse_others(path, header)
    try:
        config = _config(header)
        model = LlamaForCausalLM(config)
        tensors = {str(tensor.name): tensor for tensor in gguf.GGUFReader(path).tensors}
        with torch.no_grad():
            for place, weight in model.named_parameters():
                name = gguf_name(place, config.num_hidden_layers)
                weight.copy_(torch.from_numpy(_rows(tensors[name], name, config)))
    except KeyError as missing:
        raise GGUFError(f"{path} lacks {missing}: convert the model anew") from None
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise GGUFError(f"{path} cannot be read ({reason}): convert the model anew") from None
    return model.eval()


def gguf_name(place: str, layers: int) -> str:
    """A llama's weight as a GGUF calls it.

    >>> gguf_name("model.layers.0.self_attn.q_proj.weight", 1)
    'blk.0.attn_q.weight'
    """
    return str(_names(layers).get_name(place, try_suffixes=(".weight",)))


@cache
def _names(layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)


def halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of Q or K, `(heads * head_dim, width)`, from pairs back to two halves a head.

    With one head of 4 rows: rows 0, 1, 2, 3 become 0, 2, 1, 3. Undoes `gguf_file.interleaved`.
    """
    pairs = rows.shape[0] // heads // 2
    return rows.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _rows(tensor: gguf.ReaderTensor, name: str, config: LlamaConfig) -> NDArray[np.float32]:
    shape = [int(size) for size in reversed(tensor.shape)]
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    rows: NDArray[np.float32] = np.ascontiguousarray(found.reshape(shape))
    if name.endswith("attn_q.weight"):
        rows = halves(rows, config.num_attention_heads)
    elif name.endswith("attn_k.weight"):
        rows = halves(rows, config.num_key_value_heads)
    return rows if rows.flags.writeable else rows.copy()


def _config(header: Header) -> LlamaConfig:
    found = {key.removeprefix("llama."): value for key, value in header.metadata.items()}
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    width, heads = int(found["embedding_length"]), int(found["attention.head_count"])
    return LlamaConfig(
        vocab_size=shapes["token_embd.weight"][1],
        hidden_size=width,
        intermediate_size=int(found["feed_forward_length"]),
        num_hidden_layers=int(found["block_count"]),
        num_attention_heads=heads,
        num_key_value_heads=int(found.get("attention.head_count_kv", heads)),
        head_dim=int(found.get("attention.key_length", width // heads)),
        max_position_embeddings=int(found["context_length"]),
        rms_norm_eps=float(found["attention.layer_norm_rms_epsilon"]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(found.get("rope.freq_base", 10000.0)),
        },
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=found.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=found.get("tokenizer.ggml.eos_token_id"),
    )


def _refuse_others(path: Path, header: Header) -> None:
    kind = header.metadata.get("general.architecture")
    odd = [tensor.name for tensor in header.tensors if not _PLAIN.fullmatch(tensor.name)]
    if header.metadata.get("llama.rope.scaling.type", "none") != "none":
        odd.append("scaled rotary positions")
    if not header.tensors:
        odd.append("no weights")
    if kind != "llama" or odd:
        what = f"a llama with {odd[0]}" if kind == "llama" else f"a model of kind {kind}"
        raise GGUFError(
            f"{path} holds {what}: only plain llama models become PyTorch models here; take the "
            "model's Hugging Face folder and other tools"
        )
