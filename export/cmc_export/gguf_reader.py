"""A GGUF as a model in PyTorch: the way back from `gguf_file`, for the kinds in `model_kinds`.

    model = read("base.gguf")        # float32, whatever the file's tensors are

Quantised weights become the numbers that llama.cpp computes with. What a model of the kind has no
place for (experts, scaled positions) is refused. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from cmc_export.delta_model import LlamaForCausalLM
from cmc_export.model_kinds import KINDS, config_of, oddities
from cmc_local.base import gguf_header
from cmc_local.base.gguf_header import Header
from cmc_local.errors import GGUFError

ELSEWHERE = "take the model's Hugging Face folder and other tools"


def read(path: Path) -> PreTrainedModel:
    """The model, float32, in eval mode. Raises GGUFError for what is of no kind known here."""
    header = gguf_header.read(path)
    name = header.metadata.get("general.architecture")
    if name not in KINDS:
        raise GGUFError(
            f"{path} holds a model of kind {name}: only {', '.join(KINDS)} become PyTorch models "
            f"here; {ELSEWHERE}"
        )
    if odd := oddities(header):
        raise GGUFError(
            f"{path} holds a {name} with {odd[0]}: only plain models become PyTorch models here; "
            f"{ELSEWHERE}"
        )
    try:
        return _model(path, header)
    except KeyError as missing:
        raise GGUFError(f"{path} lacks {missing}: convert the model anew") from None
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise GGUFError(f"{path} cannot be read ({reason}): convert the model anew") from None


def read_llama(path: Path) -> LlamaForCausalLM:
    """As `read`, for a delta, which is a llama. Raises GGUFError for another kind."""
    name = gguf_header.read(path).metadata.get("general.architecture")
    if name != "llama":
        raise GGUFError(
            f"{path} holds a model of kind {name}: a delta is a llama, give one of those"
        )
    return read(path)


def _model(path: Path, header: Header) -> PreTrainedModel:
    kind, config = KINDS[header.metadata["general.architecture"]], config_of(header)
    with no_init_weights():
        model = kind.model(config)
    model.tie_weights()
    places = {
        kind.weight_name(place, config.num_hidden_layers): weight
        for place, weight in model.named_parameters()
    }
    held = {tensor.name for tensor in header.tensors}
    if missing := places.keys() - held:
        raise KeyError(min(missing))
    if more := held - places.keys():
        raise ValueError(f"{min(more)} belongs to no block of it")
    with torch.no_grad():
        for name, rows in weights(path, header):
            found = kind.to_pytorch(rows, name, config)
            places[name].copy_(torch.from_numpy(np.ascontiguousarray(found)))
    return model.eval()


def weights(path: Path, header: Header) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each tensor's name and its numbers, float32, the row's length last. Raises ValueError.

    (`gguf.GGUFReader` does the same after a quarter of a minute on a large vocabulary.)
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for tensor in header.tensors:
        if tensor.type not in gguf.GGMLQuantizationType.__members__:
            raise ValueError(f"{tensor.name} is of a {tensor.type} that is not known")
        kind = gguf.GGMLQuantizationType[tensor.type]
        shape = tuple(reversed(tensor.shape))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row = shape[-1] // block * size
        start = header.weights_at + tensor.begins
        held = data[start : start + row * int(np.prod(shape[:-1], dtype=np.int64))]
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            numbers = held.view(np.float32 if kind.name == "F32" else np.float16).reshape(shape)
        else:
            numbers = gguf.quants.dequantize(held.reshape(*shape[:-1], row), kind)
        yield tensor.name, numbers.astype(np.float32)
