"""Tiny deltas and adapters with real graphs: two layers of random weights, exported in seconds.

Beside `tiny_models`, whose tokenizers these use; the same arguments give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tiny_models
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter, AdapterSettings, DeltaShape, Precision
from cmc_local.text.prompts import named_form


def checkpoint(
    folder: Path,
    *,
    family: tiny_models.Family = "sentencepiece",
    vocab_size: int = 480,
    kv_heads: int = 2,
    tied: bool = True,
    context: int = 128,
    layers: int = 2,
    seed: int = 3,
) -> Path:
    """A delta as a Hugging Face llama folder, 32 wide with 2 heads, and logits that differ."""
    from cmc_export import delta_model

    words = tiny_models.tokenizer(family, vocab_size)
    begin, end = (1, 2) if family == "sentencepiece" else (0, 1)
    shape = DeltaShape(
        vocabulary=words.get_vocab_size(),
        width=32,
        layers=layers,
        heads=2,
        kv_heads=kv_heads,
        head_dim=16,
        mlp=48,
        context=context,
    )
    model = delta_model.build(shape, tied=tied, bos_id=begin, eos_id=end, seed=seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.mul_(10)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    return folder


def adapter_of(
    folder: Path, target: Path, precisions: Sequence[Precision] = ("fp32", "int8")
) -> Adapter:
    """A checkpoint as an adapter, not verified."""
    from cmc_export import adapter_export, delta_model, graph

    model = delta_model.load(folder)
    shape = delta_model.shape_of(model.config)
    files: dict[str, bytes | Path] = {
        adapter.GRAPHS[p]: graph.to_onnx(model, shape.context, adapter_export.STORAGE[p])
        for p in precisions
    }
    settings = AdapterSettings(name=folder.name, shape=shape, prompt=named_form("cmc"))
    return adapter.write(target, settings, {**files, "tokenizer.json": folder / "tokenizer.json"})


def tiny_adapter(
    place: Path,
    family: tiny_models.Family = "sentencepiece",
    vocab_size: int = 480,
    *,
    context: int = 128,
    seed: int = 5,
) -> Path:
    """An adapter in fp32 whose delta is a random tiny llama; its name is the folder's."""
    folder = checkpoint(
        place.parent / "checkpoints" / place.name,
        family=family,
        vocab_size=vocab_size,
        context=context,
        seed=seed,
    )
    return adapter_of(folder, place, ["fp32"]).path
