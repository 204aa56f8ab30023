"""What fine-tuning writes: a LoRA, or a model's GGUF with other weights; whole or not at all.

    write_lora   `blk.N.attn_q.weight.lora_a` (rank, in) and `.lora_b` (out, rank)
    write_full   everything that the base's GGUF says, and the weights that were learned

Matrices take the chosen type, norms and biases stay F32, rows are in llama.cpp's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cmc_export.gguf_file import TensorType
from cmc_export.model_kinds import Kind, kind_of
from cmc_local.files import whole

ADAPTER: Final = "default"
"""peft's name of the one adapter."""


def write_lora(model: PreTrainedModel, path: Path, alpha: float, type: TensorType) -> None:
    """The model's small matrices as llama.cpp's LoRA GGUF; its scale is alpha / rank."""
    layers, kind = model.config.num_hidden_layers, kind_of(model)
    with _writer(path, kind) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for place, module in model.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            name = kind.weight_name(f"{place}.weight", layers)
            first, second = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            _add(writer, f"{name}.lora_a", _array(first), type)
            rows = kind.to_gguf(_array(second), name, model.config)
            _add(writer, f"{name}.lora_b", rows, type)


def write_full(model: PreTrainedModel, base: Path, path: Path, type: TensorType) -> None:
    """The GGUF `base` with the model's weights instead of its own.

    Everything else that it says (shape, tokenizer, chat template) stays as it is, but for its name.
    """
    layers, kind = model.config.num_hidden_layers, kind_of(model)
    weights = {
        kind.weight_name(place, layers): weight for place, weight in model.state_dict().items()
    }
    reader = gguf.GGUFReader(base)
    with _writer(path, kind) as writer:
        _copy_metadata(reader, writer)
        writer.add_name(path.stem)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[type]])
        for tensor in reader.tensors:
            name = str(tensor.name)
            rows = kind.to_gguf(_array(weights[name]), name, model.config)
            _add(writer, name, rows, type)


_FILE_TYPES: Final = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
_WRITTEN_ANEW: Final = ("general.architecture", "general.name", "general.file_type")


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _WRITTEN_ANEW:
            continue  # counts and version of the file itself, or written anew
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)


def _array(weight: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return found


def _add(writer: gguf.GGUFWriter, name: str, tensor: NDArray[np.float32], type: TensorType) -> None:
    kind = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else type]
    if kind == gguf.GGMLQuantizationType.Q8_0 and tensor.shape[-1] % 32:  # blocks of 32 values
        kind = gguf.GGMLQuantizationType.F16
    rows = gguf.quants.quantize(np.ascontiguousarray(tensor), kind)
    writer.add_tensor(name, rows, raw_dtype=kind)


@contextmanager
def _writer(path: Path, kind: Kind) -> Iterator[gguf.GGUFWriter]:
    """A writer whose file is at `path` once everything has been added, and nowhere before."""
    with whole(path) as part, closing(gguf.GGUFWriter(part, kind.name)) as writer:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
