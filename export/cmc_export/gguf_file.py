"""A Hugging Face llama folder as one GGUF file.

    write("models/template", "template.gguf", type="F16")

What has to be right for the file to say the same as its source: rows of Q and K go from the
two-halves rotary layout to the interleaved one, tied embeddings are stored once, and the tokenizer
says which family it is of (see `gguf_tokenizer`). Matrices take the chosen type, norms stay F32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cmc_export.gguf_tokenizer import add_tokenizer
from cmc_local.errors import InputError
from cmc_local.files import whole

TensorType = Literal["F32", "F16", "Q8_0"]

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class LlamaShape:
    """What a GGUF file says about a llama model; sizes are counts, `rope_theta` is the base."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    context: int
    rms_epsilon: float
    rope_theta: float
    tied: bool


def write(folder: str | Path, path: str | Path, *, type: TensorType = "F32") -> None:
    """Write the llama model in `folder` to `path`, whole or not at all.

    `folder` holds config.json, *.safetensors and tokenizer.json; a chat template is taken along.
    Raises InputError for a folder that is incomplete or not a plain llama model.
    """
    folder, path = Path(folder), Path(path)
    if type not in _FILE_TYPES:
        raise InputError(f"cannot write tensors as {type!r}: choose F32, F16 or Q8_0")
    config = _json_object(folder / "config.json")
    shape = _shape(config, folder)
    with whole(path) as part:
        _write_file(folder, part, config, shape, type)


def _write_file(
    folder: Path, part: Path, config: dict[str, Any], shape: LlamaShape, type: TensorType
) -> None:
    writer = gguf.GGUFWriter(part, "llama")
    try:
        writer.add_name(folder.resolve().name)
        writer.add_file_type(_FILE_TYPES[type])
        add_shape(writer, shape)
        add_tokenizer(writer, folder, config, shape.vocabulary)
        for name, tensor in sorted(_named_tensors(folder, shape)):
            _add_tensor(writer, name, tensor, type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: give a Hugging Face model folder with its {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): save the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object: save the model again")
    return value


def _shape(config: dict[str, Any], folder: Path) -> LlamaShape:
    if config.get("model_type") != "llama":
        raise InputError(
            f"{folder} holds a {config.get('model_type')!r} model: only llama models are written"
            " here, convert others with llama.cpp's own scripts"
        )
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            raise InputError(f"{folder} has {flag}: convert it with llama.cpp's own scripts")
    try:
        heads = int(config["num_attention_heads"])
        width = int(config["hidden_size"])
        return LlamaShape(
            vocabulary=int(config["vocab_size"]),
            width=width,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            mlp=int(config["intermediate_size"]),
            context=int(config["max_position_embeddings"]),
            rms_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(config, folder),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise InputError(f"{folder}/config.json lacks {error}: save the model again") from None


def _rope_theta(config: dict[str, Any], folder: Path) -> float:
    """The rotary base; transformers 5 keeps it in `rope_parameters`, earlier ones beside it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(
            f"{folder} scales its rotary positions ({kind}): convert it with llama.cpp's scripts"
        )
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))


def add_shape(writer: gguf.GGUFWriter, shape: LlamaShape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)


def _named_tensors(folder: Path, shape: LlamaShape) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each tensor under its GGUF name, float32, Q and K permuted; every expected one, once."""
    expected = _expected_names(shape)
    for name, tensor in _source_tensors(folder):
        if name == "lm_head.weight" and shape.tied:
            continue
        if name.endswith("rotary_emb.inv_freq"):
            continue  # older checkpoints store what the rotary base already says
        if name not in expected:
            raise InputError(f"{folder} has an unexpected tensor {name}: is it a llama model?")
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, shape.heads)
        elif name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, shape.kv_heads)
        yield expected.pop(name), tensor
    if expected:
        raise InputError(f"{folder} lacks the tensor {min(expected)}: save the model again")


def _expected_names(shape: LlamaShape) -> dict[str, str]:
    """Hugging Face name -> GGUF name."""
    names = {
        f"model.layers.{i}.{theirs}.weight": f"blk.{i}.{ours}.weight"
        for i in range(shape.layers)
        for theirs, ours in _LAYER_NAMES.items()
    }
    names.update(_OUTER_NAMES)
    if shape.tied:
        del names["lm_head.weight"]
    return names


def _source_tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} holds no *.safetensors file: load it and save it with save_pretrained"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:  # numpy has no bfloat16
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    yield name, tensors.get_tensor(name).float().numpy()
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read ({error}): copy or save it again") from None


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of Q or K, `(heads * head_dim, width)`, from two halves a head to pairs.

    With one head of 4 rows: rows 0, 1, 2, 3 become 0, 2, 1, 3.
    """
    pairs = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, pairs, -1).swapaxes(1, 2).reshape(rows.shape)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: NDArray[np.float32], type: TensorType
) -> None:
    tensor = np.ascontiguousarray(tensor)
    if tensor.ndim == 1 or type == "F32":
        writer.add_tensor(name, tensor)
    elif type == "F16" or tensor.shape[-1] % 32:  # Q8_0 has blocks of 32 values
        writer.add_tensor(name, tensor.astype(np.float16))
    else:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
