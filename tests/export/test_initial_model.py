"""What `--init` begins from: a folder or a GGUF is one model, and what is kept is kept exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiny_models
from cmc_export import delta_model
from cmc_export.graph import to_onnx
from cmc_export.healing import Distillation, open_teacher
from cmc_export.initial_model import begin
from cmc_export.pretraining import NextToken, plan, pretrain
from cmc_export.recipe import PretrainRecipe, Shape
from cmc_local.errors import CmcError, DataError, GGUFError, InputError, TokenizerError, UsageError
from cmc_local.text.delta_tokenizer import DeltaTokenizer

TEXT = "Helen Blackworth was born in Harborville."


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(tiny_models.TEXTS * 6), "utf-8")
    return path


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.eval()(torch.tensor([ids])).logits[0].numpy()
    return found


def thinned(folder: Path, text: Path, output: Path, **more: Any) -> PretrainRecipe:
    values = {
        "init": folder, "row_length": 16, "batch": 4, "steps": 6, "valid_share": 0.2, "threads": 1,
        "learning_rate": 1e-2, "device": "cpu", "precision": "fp32", **more,
    }  # fmt: skip
    return PretrainRecipe(output=output, text=(text,), **values)


def test_a_folder_and_its_gguf_are_one_model(tiny_folder: Path, tiny_gguf: Path) -> None:
    one, other = begin(Shape(init=tiny_folder), None), begin(Shape(init=tiny_gguf), None)
    assert one is not None and other is not None and one.words and other.words
    ids = DeltaTokenizer(one.words).encode(TEXT)
    assert DeltaTokenizer(other.words).encode(TEXT) == ids
    np.testing.assert_allclose(logits(one.model, ids), logits(other.model, ids), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_kept_tokens_have_the_logits_that_they_had(tmp_path: Path, text: Path, tied: bool) -> None:
    folder = tiny_models.llama_folder(tmp_path / "m", tied=tied)
    (tmp_path / "data.txt").write_text(TEXT, "utf-8")
    start = begin(Shape(init=folder, keep_vocabulary=(tmp_path / "data.txt",)), None)
    whole = begin(Shape(init=folder), None)
    assert start is not None and whole is not None and start.kept and start.words and whole.words
    assert 256 < len(start.kept) < start.vocabulary_before == 480
    new, old = DeltaTokenizer(start.words).encode(TEXT), DeltaTokenizer(whole.words).encode(TEXT)
    assert [start.kept[i] for i in new] == old
    expected = logits(whole.model, old)[:, list(start.kept)]
    np.testing.assert_allclose(logits(start.model, new), expected, atol=1e-5)
    assert start.model.config.eos_token_id == DeltaTokenizer(start.words).eos_id
    dropped = (480 - len(start.kept)) * 32 * (1 if tied else 2)
    assert start.parameters_before - start.model.num_parameters() == dropped


def test_kept_layers_are_those_that_were_named(tiny_folder: Path) -> None:
    start = begin(Shape(init=tiny_folder, keep_layers=(1,)), None)
    whole = delta_model.load(tiny_folder).state_dict()
    assert start is not None and start.model.config.num_hidden_layers == 1
    for name, weight in start.model.state_dict().items():
        old = name.replace("layers.0.", "layers.1.")
        assert torch.equal(weight, whole[old]), name


def test_a_gguf_keeps_its_settings_up_to_the_adapters_graph(tmp_path: Path) -> None:
    """Three kv heads of nine, another rotary base and epsilon, tied: GGUF -> model -> ONNX."""
    folder = nine_heads(tmp_path / "m")
    start = begin(Shape(init=tiny_models.gguf_of(folder)), None)
    assert start is not None
    source = delta_model.load(folder)
    ids = [1, 300, 17, 350, 299, 300, 8, 400]
    np.testing.assert_allclose(logits(start.model, ids), logits(source, ids), atol=1e-4)
    config = start.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 16)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert config.rms_norm_eps == pytest.approx(3e-4)
    np.testing.assert_allclose(by_onnx(start.model, ids), logits(source, ids), atol=1e-4)


def nine_heads(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tiny_models.tokenizer()
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(), hidden_size=144, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=3e-4,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    return folder


def by_onnx(model: delta_model.LlamaForCausalLM, ids: list[int]) -> NDArray[np.float32]:
    """(T, V) float32, by the graph that an adapter ships."""
    import onnxruntime

    shape, count = delta_model.shape_of(model.config), len(ids)
    session = onnxruntime.InferenceSession(to_onnx(model, 32), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, shape.kv_heads, 32, shape.head_dim), np.float32)
    past = {f"past_{k}_{i}": empty for i in range(shape.layers) for k in ("key", "value")}
    given = {
        "input_ids": np.array([ids], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array([count], np.int32),
        "logit_positions": np.arange(count, dtype=np.int64),
        **past,
    }
    found: NDArray[np.float32] = session.run(["logits"], given)[0][0]
    return found


# --- healing --------------------------------------------------------------------------------------


def test_a_teacher_heals_a_thinned_model(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    what = {"keep_layers": (0,), "keep_vocabulary": (text,), "teacher": tiny_folder, "steps": 40}
    recipe = thinned(tiny_folder, text, tmp_path / "out", **what, teacher_weight=1.0, log_every=1)
    summary = pretrain(recipe)
    assert summary["layers"] == 1
    assert summary["parameters"] < summary["parameters_before"]
    log = (tmp_path / "out/log.jsonl").read_text("utf-8").splitlines()
    losses = [found["loss"] for found in map(json.loads, log) if "loss" in found]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    written = DeltaTokenizer((tmp_path / "out/tokenizer.json").read_bytes())
    assert len(written.vocabulary) == summary["vocabulary"]


def test_the_loss_is_that_of_the_whole_teacher_over_the_kept_tokens(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text(TEXT, "utf-8")
    shape = Shape(init=tiny_folder, keep_layers=(1,), keep_vocabulary=(tmp_path / "data.txt",))
    start = begin(shape, None)
    assert start is not None and start.kept and start.words
    ids = DeltaTokenizer(start.words).encode(TEXT)
    batch = {"input_ids": torch.tensor([ids[:-1]]), "targets": torch.tensor([ids[1:]])}
    objective = Distillation(open_teacher(tiny_folder, start, start.words), 0.25, NextToken())
    got = objective.loss(start.model, batch, objective.counts(batch))

    old = [start.kept[i] for i in ids[:-1]]
    whole = np.exp(logits(delta_model.load(tiny_folder), old).astype(np.float64))
    wanted = whole[:, list(start.kept)] / whole[:, list(start.kept)].sum(1, keepdims=True)
    found = logits(start.model, ids[:-1]).astype(np.float64)
    said = found - np.log(np.exp(found).sum(1, keepdims=True))
    text = -said[np.arange(len(old)), ids[1:]].mean()
    apart = (wanted * (np.log(wanted) - said)).sum(1).mean()
    assert float(got) == pytest.approx(0.75 * text + 0.25 * apart, rel=1e-4)


def test_the_held_out_loss_is_cross_entropy_whatever_the_teacher(
    tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    recipe = thinned(tiny_folder, text, tmp_path / "a", steps=1, learning_rate=1e-12)
    alone = pretrain(recipe)["held_out_loss"]
    taught = replace(recipe, output=tmp_path / "b", teacher=tiny_folder, teacher_weight=0.9)
    assert pretrain(taught)["held_out_loss"] == pytest.approx(alone, abs=1e-5)


def test_a_dry_run_says_what_is_left(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    found = plan(thinned(tiny_folder, text, tmp_path / "o", keep_layers=(1,)))
    block = (
        4 * 32 * 32 - 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32
    )  # q, k, v, o; two of four kv heads; MLP; norms
    assert found["parameters_before"] - found["parameters"] == block
    assert (found["layers"], found["vocabulary"], found["vocabulary_before"]) == (1, 480, 480)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"keep_layers": (0, 2)}, UsageError, "has no layer 2: its 2 are 0 to 1"),
        ({"keep_layers": (1, 0)}, UsageError, "ascending"),
        ({"init": None, "keep_layers": (0,), "vocabulary": 400}, UsageError, "give --init"),
        ({"vocabulary": 400}, UsageError, "leave --vocabulary out"),
        ({"teacher_weight": 1.5}, UsageError, "teacher_weight must be"),
        ({"init": Path("none")}, GGUFError, "none does not exist"),
    ],
)
def test_mistakes_are_told(
    tiny_folder: Path,
    text: Path,
    tmp_path: Path,
    more: dict[str, Any],
    error: type[CmcError],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        pretrain(PretrainRecipe(**{**values_of(tiny_folder, text, tmp_path), **more}))
    assert list(tmp_path.iterdir()) == []


def values_of(folder: Path, text: Path, tmp_path: Path) -> dict[str, Any]:
    return {"init": folder, "text": (text,), "output": tmp_path / "o", "row_length": 16}


def test_models_and_data_that_do_not_fit_are_refused(
    tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    other = tiny_models.llama_folder(tmp_path / "other", family="byte-level", vocab_size=420)
    bare = tiny_models.llama_folder(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("\u4e2d", "utf-8")
    cases: list[tuple[dict[str, Any], type[CmcError], str]] = [
        ({"init": tiny_models.gguf_of_kind(tmp_path / "q.gguf", "qwen2")}, GGUFError, "kind qwen2"),
        ({"init": bare}, TokenizerError, "no tokenizer.json: give --tokenizer"),
        ({"init": bare, "keep_vocabulary": (text,)}, TokenizerError, "give --tokenizer"),
        ({"init": other, "keep_vocabulary": (foreign,)}, DataError, "use no piece"),
        ({"init": other, "keep_vocabulary": (tmp_path / "no",)}, DataError, "does not exist"),
        ({"teacher": other}, InputError, "tokens, the model that it is to teach"),
    ]
    for more, error, told in cases:
        with pytest.raises(error, match=told):
            pretrain(PretrainRecipe(**{**values_of(tiny_folder, text, tmp_path), **more}))
    assert not (tmp_path / "o").exists()
