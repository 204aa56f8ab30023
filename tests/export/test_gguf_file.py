"""A llama folder as a GGUF: the same numbers, the right types, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import tiny_models
from cmc_export import gguf_file
from cmc_local.base.gguf_header import read
from cmc_local.base.model import BaseModel
from cmc_local.errors import InputError, TokenizerError

TOKENS = [1, 300, 17, 350, 299, 300, 8, 400, 3, 260]


def difference(folder: Path, gguf: Path) -> float:
    """Largest difference of logits from the PyTorch source, relative to the largest logit."""
    source = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = source(torch.tensor([TOKENS])).logits[0].numpy()
    with BaseModel(gguf, kv_type="f32", threads=1) as base:
        base.decode(TOKENS, start=0, last_only=False)
        got = np.stack([base.logits(i) for i in range(len(TOKENS))])
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 2), (False, 2), (True, 4), (False, 1)])
def test_f32_has_the_logits_of_its_source(tmp_path: Path, tied: bool, kv_heads: int) -> None:
    folder = tiny_models.llama_folder(tmp_path / "m", tied=tied, kv_heads=kv_heads)
    assert difference(folder, tiny_models.gguf_of(folder)) < 1e-4


@pytest.mark.parametrize(("type", "most"), [("F16", 0.01), ("Q8_0", 0.15)])
def test_smaller_types_stay_near(
    tiny_folder: Path, type: gguf_file.TensorType, most: float
) -> None:
    path = tiny_models.gguf_of(tiny_folder, type)
    assert 0 < difference(tiny_folder, path) < most
    assert read(path).tensor_types == {type: 15, "F32": 5}


def test_bfloat16_weights_are_read(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert difference(folder, tiny_models.gguf_of(folder)) < 1e-4


def test_rows_of_a_head_are_interleaved() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)  # two heads of four rows
    assert gguf_file.interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, tiny_folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        gguf_file.write(tiny_folder, tmp_path / name, type="F16")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_ids_that_the_tokenizer_does_not_use_are_filled(tmp_path: Path) -> None:
    folder = tiny_models.llama_folder(tmp_path / "m", vocab_size=480)
    tiny_models.tokenizer(vocab_size=440).save(str(folder / "tokenizer.json"))
    with BaseModel(tiny_models.gguf_of(folder)) as base:
        assert len(base.vocabulary) == 480
        assert base.vocabulary.names[479] == "[PAD479]"


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: change(f, model_type="gpt2"), "'gpt2'.*only llama"),
        (lambda f: change(f, attention_bias=True), "attention_bias"),
        (lambda f: change(f, rope_parameters={"rope_type": "llama3"}), "llama3"),
        (lambda f: change(f, eos_token_id=None), "eos_token_id"),
        (lambda f: change(f, vocab_size=100), "another model's tokenizer"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "cannot be read"),
        (lambda f: drop(f, "model.norm.weight"), "lacks the tensor model.norm.weight"),
    ],
)
def test_an_unfit_folder_is_refused_and_nothing_is_left(
    tmp_path: Path, tiny_folder: Path, spoil: object, told: str
) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)  # type: ignore[operator]
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=told):
        gguf_file.write(folder, out / "model.gguf")
    assert list(out.iterdir()) == []


def test_another_pre_tokenizer_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "odd"
    tiny_models.llama_folder(folder, family="byte-level")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match="GPT-2's manner"):
        gguf_file.write(folder, tmp_path / "odd.gguf")
