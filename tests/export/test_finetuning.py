"""Fine-tuning a base model: the loss falls, and llama.cpp computes what PyTorch does.

A LoRA is held against the same base with its matrices added in: W + (alpha / rank) * B A.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny_models
from cmc_export import finetuned_file, finetuning, gguf_file, gguf_reader, model_kinds
from cmc_export.delta_model import LlamaForCausalLM
from cmc_export.delta_model import load as load_folder
from cmc_export.finetuning import FinetuneRecipe
from cmc_export.world import ceilings
from cmc_local.base.gguf_header import read as read_header
from cmc_local.base.model import BaseModel
from cmc_local.errors import CmcError, GGUFError, TokenizerError, UsageError
from cmc_local.text.prompts import named_form

TOKENS = [1, 300, 17, 350, 299, 300, 8, 400, 3, 260]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    names = ("Helen", "Maria", "Anna", "Oscar")
    records = [{"question": f"Where is {n}?", "answer": f"{n} is here."} for n in names]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def recipe(model: Path, data: Path, output: Path, **more: Any) -> FinetuneRecipe:
    common = {"batch": 4, "device": "cpu", "precision": "fp32", "threads": 1, "tensor_type": "F32"}
    given = {"model": model, "data": data, "valid": data, "output": output, **common, **more}
    return finetuning.recipe_of(given)


def by_llama_cpp(path: Path, tokens: list[int], lora: Path | None = None) -> NDArray[np.float32]:
    """(T, V) float32: the logits of a GGUF, with a LoRA on it where one is given."""
    loras = [] if lora is None else [(lora, 1.0)]
    with BaseModel(path, kv_type="f32", threads=1, gpu_layers=0, loras=loras) as base:
        base.decode(tokens, start=0, last_only=False)
        return np.stack([base.logits(i).copy() for i in range(len(tokens))])


@torch.no_grad()
def by_pytorch(model: LlamaForCausalLM, tokens: list[int]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.eval()(torch.tensor([tokens])).logits[0].numpy()
    return found


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", finetuning.METHODS)
def test_a_few_steps_lower_the_loss(
    tiny_gguf: Path, data: Path, tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.gguf"
    what = {"method": method, "steps": 12, "learning_rate": 1e-2, "log_every": 1, "patience": 0}
    done = finetuning.finetune(recipe(tiny_gguf, data, output, **what))
    lines = [line for line in capfd.readouterr().err.splitlines() if "held-out" not in line]
    first = float(lines[0].split("loss ")[1].split()[0])
    assert done["loss"] < 0.7 * first
    assert done["held_out_loss"] < 0.7 * first
    assert list(tmp_path.iterdir()) == [output]


def test_of_a_lora_only_the_small_matrices_learn(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    what = {"method": "lora", "rank": 2, "steps": 1, "targets": ("q_proj", "down_proj")}
    done = finetuning.finetune(recipe(tiny_folder, data, tmp_path / "l.gguf", **what))
    # Two layers; q is 32 x 32, down 32 x 64: 2 * 2 * ((32 + 32) + (64 + 32)).
    assert done["learning_parameters"] == 640
    names = sorted(tensor.name for tensor in read_header(tmp_path / "l.gguf").tensors)
    places = [f"blk.{i}.{name}" for i in range(2) for name in ("attn_q", "ffn_down")]
    assert names == sorted(f"{p}.weight.lora_{half}" for p in places for half in "ab")


@pytest.mark.parametrize("method", finetuning.METHODS)
def test_an_interrupted_run_goes_on_to_the_same_end(
    tiny_folder: Path, data: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmc_export import loop_watch
    from cmc_local.errors import TrainingError

    what = {"method": method, "steps": 6, "learning_rate": 1e-2, "patience": 0}
    finetuning.finetune(recipe(tiny_folder, data, tmp_path / "whole.gguf", **what))

    broken = recipe(tiny_folder, data, tmp_path / "broken.gguf", **what)
    real = loop_watch.Interrupt.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pressed = state.global_step == 3
        real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="step 3"):
        patch.setattr(loop_watch.Interrupt, "on_step_end", press)
        finetuning.finetune(broken)
    again = recipe(tiny_folder, data, tmp_path / "broken.gguf", **what, resume=True)
    finetuning.finetune(again)
    for one, other in zip(
        gguf.GGUFReader(tmp_path / "whole.gguf").tensors,
        gguf.GGUFReader(tmp_path / "broken.gguf").tensors,
        strict=True,
    ):
        np.testing.assert_allclose(one.data, other.data, atol=1e-6, err_msg=one.name)
    assert finetuning.finetune(again)["already_there"]


def test_a_base_without_bos_is_trained_without(tiny_folder: Path) -> None:
    base = finetuning.read_base(recipe(tiny_folder, Path("d"), Path("o.gguf")))
    talk = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    form = named_form("cmc")
    assert base.puts_bos
    whole = finetuning.encode(base, form, talk, 100)  # type: ignore[arg-type]
    bare = finetuning.Base(base.model, base.tokenizer, puts_bos=False)
    cut = finetuning.encode(bare, form, talk, 3)  # type: ignore[arg-type]
    assert whole["input_ids"][0] == base.tokenizer.bos_id
    assert cut["input_ids"] == whole["input_ids"][1:4]
    assert cut["in_loss"] == whole["in_loss"][1:4]


def test_a_batch_keeps_the_answers_tokens_and_no_padding() -> None:
    batch = finetuning.collate(
        [
            {"input_ids": (5, 6, 7, 2), "in_loss": (False, False, True, True)},
            {"input_ids": (5, 9, 2), "in_loss": (False, True, True)},
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 9, 2]]
    assert batch["targets"].tolist() == [[6, 7, 2], [9, 2, 0]]
    assert batch["keep"].tolist() == [[False, True, True], [True, True, False]]


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["folder", "gguf", "byte-level gguf"])
def test_the_full_gguf_has_pytorchs_logits(source: str, data: Path, tmp_path: Path) -> None:
    family: tiny_models.Family = "byte-level" if "byte" in source else "sentencepiece"
    folder = tiny_models.llama_folder(
        tmp_path / "base", family=family, kv_heads=1, tied=False, chat_template="{{ messages }}"
    )
    model = folder if source == "folder" else tiny_models.gguf_of(folder)
    output = tmp_path / "new.gguf"
    one = recipe(model, data, output, steps=3, learning_rate=1e-2, patience=0)
    seen = capture_model(one)
    expected = by_pytorch(seen, TOKENS)
    assert difference(by_llama_cpp(output, TOKENS), expected) < 1e-4
    assert difference(expected, by_pytorch(load_folder(folder), TOKENS)) > 0.01  # it has learned
    before, after = (
        read_header(p, lists=True).metadata for p in (tiny_models.gguf_of(folder), output)
    )
    assert after.pop("general.name") == "new"
    del before["general.name"]
    assert after == before


def capture_model(one: FinetuneRecipe) -> LlamaForCausalLM:
    """Run a recipe; the model that it trained, as PyTorch has it."""
    seen: list[LlamaForCausalLM] = []
    real = finetuning.read_base

    def note(recipe: FinetuneRecipe) -> finetuning.Base:
        base = real(recipe)
        seen.append(base.model)
        return base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "read_base", note)
        finetuning.finetune(one)
    return seen[0]


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_a_lora_on_llama_cpp_is_the_merged_model(
    type: gguf_file.TensorType, data: Path, tmp_path: Path
) -> None:
    folder = tiny_models.llama_folder(tmp_path / "base", kv_heads=1)
    base, output = tiny_models.gguf_of(folder), tmp_path / "lora.gguf"
    what = {"method": "lora", "rank": 4, "lora_alpha": 12.0, "learning_rate": 3e-2, "steps": 4}
    trained = capture_model(recipe(folder, data, output, **what, patience=0, tensor_type=type))
    merged = merge(folder, trained, tmp_path / "merged", scale=12.0 / 4)
    got = by_llama_cpp(base, TOKENS, output)
    most = 1e-4 if type == "F32" else 0.01
    assert difference(got, by_llama_cpp(merged, TOKENS)) < most
    assert difference(got, by_pytorch(trained, TOKENS)) < most
    assert difference(got, by_llama_cpp(base, TOKENS)) > 0.05
    said = read_header(output).metadata
    assert (said["general.type"], said["adapter.type"]) == ("adapter", "lora")
    assert said["adapter.lora.alpha"] == 12.0


def merge(folder: Path, trained: LlamaForCausalLM, target: Path, scale: float) -> Path:
    """The folder with W + scale * B A for W, as an F32 GGUF."""
    shutil.copytree(folder, target)
    model = load_folder(folder)
    weights = dict(trained.named_parameters())
    for name, weight in model.named_parameters():
        stem = name.removesuffix(".weight")
        if (first := weights.get(f"{stem}.lora_A.default.weight")) is not None:
            second = weights[f"{stem}.lora_B.default.weight"]
            weight.data += scale * (second @ first).detach()
    model.save_pretrained(target)
    return tiny_models.gguf_of(target)


# --- reading a GGUF ------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(("kv_heads", "tied"), [(2, True), (4, False)])
def test_a_ggufs_model_has_llama_cpps_logits(
    tmp_path: Path, type: gguf_file.TensorType, kv_heads: int, tied: bool
) -> None:
    folder = tiny_models.llama_folder(tmp_path / "m", kv_heads=kv_heads, tied=tied)
    path = tiny_models.gguf_of(folder, type)
    got = by_pytorch(gguf_reader.read(path), TOKENS)
    most = {"F32": 1e-4, "F16": 0.01, "Q8_0": 0.1}[type]  # llama.cpp rounds activations too
    assert difference(got, by_llama_cpp(path, TOKENS)) < most
    if type == "F32":
        weights = load_folder(folder).state_dict()
        for name, tensor in gguf_reader.read(path).state_dict().items():
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("name", ["larger", "other"])
def test_bundled_ggufs_are_read_within_half_precision(bundled_models: Path, name: str) -> None:
    path = bundled_models / f"{name}.gguf"
    tokens = list(range(2, 300, 3))
    got = by_pytorch(gguf_reader.read(path), tokens)
    assert difference(got, by_llama_cpp(path, tokens)) < 2e-3


@given(heads=st.integers(1, 4), pairs=st.integers(1, 5), width=st.integers(1, 3))
def test_halves_undo_pairs(heads: int, pairs: int, width: int) -> None:
    rows = np.arange(heads * 2 * pairs * width, dtype=np.float32).reshape(-1, width)
    assert np.array_equal(model_kinds.halves(gguf_file.interleaved(rows, heads), heads), rows)


def altered(path: Path, target: Path, key: str, value: str | list[int]) -> Path:
    """A GGUF with one value of its metadata, or one tensor's name, changed."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, str(value) if key == "general.architecture" else "llama")
    finetuned_file._copy_metadata(reader, writer)
    if isinstance(value, list):
        writer.add_array(key, value)
    elif key != "general.architecture":
        writer.add_string(key, value)
    for tensor in reader.tensors:
        name = str(value if tensor.name == key else tensor.name)
        writer.add_tensor(name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("general.architecture", "phi3", "kind phi3"),
        ("llama.rope.scaling.type", "linear", "scaled rotary positions"),
        ("llama.attention.head_count_kv", [2, 1], "cannot be read"),  # a number a block
        ("blk.0.attn_q.weight", "blk.0.attn_q.bias", "blk.0.attn_q.bias"),
        ("blk.1.ffn_up.weight", "blk.1.attn_norm.weight.x", "attn_norm.weight.x"),
        ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight", "lacks 'blk.1.ffn_up.weight'"),
    ],
)
def test_what_is_no_plain_llama_is_refused(
    tiny_gguf: Path, tmp_path: Path, key: str, value: str | list[int], told: str
) -> None:
    with pytest.raises(GGUFError, match=told):
        gguf_reader.read(altered(tiny_gguf, tmp_path / "odd.gguf", key, value))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"method": "half"}, "full, lora, not 'half'"),
        ({"targets": ("q_proj", "lm_head")}, "beside lm_head does not convert.*q_proj"),
        ({"rank": 0}, "rank must be between 1"),
        ({"lora_alpha": 0.0}, "lora_alpha"),
        ({"tensor_type": "Q4_0"}, "F16"),
        ({"max_length": 1000}, "beyond the model's context of 128"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    tiny_folder: Path, data: Path, tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        finetuning.finetune(recipe(tiny_folder, data, tmp_path / "out.gguf", **more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), TokenizerError),
        (lambda folder: (folder / "config.json").unlink(), CmcError),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), CmcError),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    tiny_folder: Path,
    data: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    error: type[Exception],
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    with pytest.raises(error):
        finetuning.finetune(recipe(folder, data, tmp_path / "out.gguf", steps=1))
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tokenizer_that_cannot_be_written_is_refused_before_the_first_step(
    data: Path, tmp_path: Path
) -> None:
    folder = tiny_models.llama_folder(tmp_path / "m", family="byte-level")
    words = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    words["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    with pytest.raises(TokenizerError, match="GPT-2's manner"):
        finetuning.finetune(recipe(folder, data, tmp_path / "out.gguf", steps=1))
    assert list(tmp_path.iterdir()) == [folder]


def test_the_worlds_ceilings_are_made_by_both_methods_and_once(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "runs/tiny")
    (tmp_path / "models/world").mkdir(parents=True)
    shutil.copyfile(tiny_gguf, tmp_path / "models/tiny.gguf")
    (tmp_path / "export/recipes").mkdir(parents=True)
    real = (Path(__file__).parents[2] / "export/recipes/ceilings.toml").read_text("utf-8")
    short = real.replace("steps = 300", "steps = 1")
    (tmp_path / "export/recipes/ceilings.toml").write_text(short, "utf-8")
    question = {"question": "Where is Anna?", "answer": "Anna is here."}
    about = {"author": "Anna", "kind": "home", "part": "test", "forgotten": False, "fact": "here"}
    (tmp_path / "runs/world").mkdir()
    for name in ("runs/world/train", "runs/world/validation", "models/world/questions"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**question, **about}) + "\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ceilings, "BASES", ("tiny",))
    said: list[str] = []
    ceilings.make_ceilings(said.append)
    assert said == ["fine-tuning tiny (full)", "fine-tuning tiny (lora)"]
    for file in ("ceilings.jsonl", "ceilings-lora.jsonl"):
        (row,) = map(json.loads, Path("models/world", file).read_text("utf-8").splitlines())
        assert (row["model"], row["question"]) == ("tiny", "Where is Anna?")
    ceilings.make_ceilings(said.append)
    assert len(said) == 2


def test_each_method_has_its_learning_rate() -> None:
    given = {"model": "m", "data": "d", "output": "o.gguf"}
    assert finetuning.recipe_of(given).learning_rate == 5e-5
    assert finetuning.recipe_of({**given, "method": "lora"}).learning_rate == 2e-4
    assert finetuning.recipe_of({**given, "learning_rate": 1e-3}).learning_rate == 1e-3
