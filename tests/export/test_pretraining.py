"""Pretraining and the loop: rows, resume, Ctrl-C, divergence, and a folder whole or not at all."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_models
from cmc_export import delta_model, loop, pretraining
from cmc_export.loop import Batch
from cmc_export.pretraining import NextToken, pack, plan, pretrain, read_documents
from cmc_export.recipe import PretrainRecipe
from cmc_local.errors import DataError, InputError, TokenizerError, TrainingError, UsageError
from cmc_local.text.vocabulary import from_tokenizer_json

TINY: dict[str, Any] = {"width": 16, "layers": 1, "heads": 1, "mlp": 32, "context": 64}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_models.tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(tiny_models.TEXTS * 6), "utf-8")
    return path


def recipe(tokenizer: Path, text: Path, output: Path, **more: Any) -> PretrainRecipe:
    values = {
        "row_length": 16, "batch": 4, "steps": 6, "log_every": 1, "evaluate_every": 3,
        "valid_share": 0.1, "learning_rate": 1e-2, "device": "cpu", "threads": 1,
        "precision": "fp32", **TINY, **more,
    }  # fmt: skip
    return PretrainRecipe(output=output, text=(text,), tokenizer=tokenizer, **values)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(delta_model.load(folder).state_dict())


def test_rows_overlap_by_one_token_so_that_no_position_is_wasted() -> None:
    documents = [np.array([1, 5, 2], np.int32), np.array([1, 6, 7, 2], np.int32)]
    assert pack(documents, 2).tolist() == [[1, 5, 2], [2, 1, 6], [6, 7, 2]]
    assert pack(documents, 7).shape == (0, 8)
    assert pack([], 2).shape == (0, 3)


def test_a_batch_is_inputs_and_the_tokens_after_them() -> None:
    batch = pretraining.collate([torch.tensor([1, 5, 2], dtype=torch.int32)])
    assert batch["input_ids"].tolist() == [[1, 5]]
    assert batch["targets"].tolist() == [[5, 2]]


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        ("blank-line", ["a\nb", "c"]),
        ("line", ["a", "b", "c"]),
        ("file", ["a\nb\n \nc"]),
    ],
)
def test_where_a_document_ends(tmp_path: Path, separator: Any, documents: list[str]) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n \nc\n", "utf-8")
    assert read_documents([tmp_path / "a.txt"], separator) == documents


def test_jsonl_has_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\n\\nb"}\n"c"\n', "utf-8")
    assert read_documents([path], "blank-line") == ["a\n\nb", "c"]
    path.write_text('{"text": "a"}\n{"txt": "b"}\n', "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected"):
        read_documents([path], "blank-line")


def test_a_run_learns_and_writes_a_llama_folder(
    tokenizer: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    summary = pretrain(recipe(tokenizer, text, output, steps=20, learning_rate=3e-2))
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert {line["step"] for line in lines if "eval_loss" in line} >= {3, 18, 20}
    assert 1200 < summary["tokens"] <= 20 * 4 * 16  # the last batch of an epoch is smaller
    assert summary["held_out_loss"] < losses[0]
    assert delta_model.load(output).config.num_hidden_layers == 1
    assert (output / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert not loop.run_folder(output).exists()
    assert capsys.readouterr().out == ""


def test_the_seed_gives_the_same_weights(tokenizer: Path, text: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(recipe(tokenizer, text, tmp_path / name, steps=2, seed=seed))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


class PressesCtrlC(NextToken):
    """Ctrl-C in the forward pass of the third step."""

    def __init__(self) -> None:
        self.passes = 0

    def loss(self, model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        self.passes += model.training
        if self.passes == 3 and model.training:
            signal.raise_signal(signal.SIGINT)
        return super().loss(model, batch, counts)


def test_after_ctrl_c_the_run_goes_on_as_if_nothing_had_been(
    tokenizer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain(recipe(tokenizer, text, whole))
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "NextToken", PressesCtrlC)
        with pytest.raises(TrainingError, match=r"step 3 of 6.*--resume"):
            pretrain(recipe(tokenizer, text, broken))
    assert not broken.exists()
    with pytest.raises(UsageError, match="unfinished run"):
        pretrain(recipe(tokenizer, text, broken))
    with pytest.raises(UsageError, match="started with seed 0, now it is 1"):
        pretrain(recipe(tokenizer, text, broken, seed=1, resume=True))
    pretrain(recipe(tokenizer, text, broken, resume=True))
    found = weights(broken)
    assert all(torch.equal(found[name], value) for name, value in weights(whole).items())
    curves = [(folder / "log.jsonl").read_text("utf-8").splitlines() for folder in (whole, broken)]
    losses = [[json.loads(line).get("loss") for line in curve] for curve in curves]
    assert losses[0] == losses[1]


def test_a_finished_run_is_left_alone(tokenizer: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        pretrain(recipe(tokenizer, text, output))
    assert pretrain(recipe(tokenizer, text, output, resume=True))["already_there"]
    assert list(output.iterdir()) == []


def test_checkpoints_come_by_the_clock(
    tokenizer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seen.append(Path(args.output_dir, f"checkpoint-{state.global_step}").name)

    monkeypatch.setattr(loop.LogWriter, "on_save", look, raising=False)
    pretrain(recipe(tokenizer, text, tmp_path / "a", save_minutes=0.0))
    assert seen == [f"checkpoint-{step}" for step in range(1, 6)]  # not at the last of the six
    pretrain(recipe(tokenizer, text, tmp_path / "b", save_minutes=60.0))
    assert len(seen) == 5


class Diverges(NextToken):
    def loss(self, model: torch.nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        return super().loss(model, batch, counts) * float("nan")


def test_a_loss_that_is_no_number_ends_the_run(
    tokenizer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "NextToken", Diverges)
    with pytest.raises(TrainingError, match=r"nan at step 1.*--learning-rate"):
        pretrain(recipe(tokenizer, text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_splitting_a_step_into_passes_changes_nothing(
    tokenizer: Path, text: Path, tmp_path: Path
) -> None:
    pretrain(recipe(tokenizer, text, tmp_path / "a", batch=4, steps=3))
    pretrain(recipe(tokenizer, text, tmp_path / "b", batch=2, accumulation=2, steps=3))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)


def test_init_starts_from_a_folder(
    tokenizer: Path, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    output = tmp_path / "out"
    pretrain(recipe(tokenizer, text, output, init=tiny_folder, steps=1, learning_rate=1e-9))
    before = weights(tiny_folder)
    for name, value in weights(output).items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)


def test_plan_says_what_would_be_trained(tokenizer: Path, text: Path, tmp_path: Path) -> None:
    planned = plan(recipe(tokenizer, text, tmp_path / "out", steps=0, epochs=2.0))
    rows = planned["tokens"] // 16
    assert planned["steps"] == 2 * -(-rows // 4)
    assert planned["tokens_in_all"] == planned["steps"] * 64
    assert planned["parameters"] > 16 * 300
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


@pytest.mark.usefixtures("nothing_left")
def test_mistakes_are_found_before_the_run(
    tokenizer: Path, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    output = tmp_path / "out"
    other = tmp_path / "other.json"
    tiny_models.tokenizer("byte-level", 300).save(str(other))
    (tmp_path / "short.txt").write_text("a", "utf-8")
    cases = [
        (recipe(tmp_path / "none.json", text, output), TokenizerError, "is no file"),
        (recipe(tmp_path, text, output), TokenizerError, "is no file"),
        (recipe(tokenizer, tmp_path / "none.txt", output), DataError, "does not exist"),
        (recipe(tokenizer, tmp_path / "short.txt", output), DataError, "fewer than 17 tokens"),
        (recipe(tokenizer, text, output, row_length=65), UsageError, "beyond the context of 64"),
        (recipe(other, text, output, init=tiny_folder), InputError, "leave --tokenizer"),
        (recipe(tokenizer, text, output, shape="huge"), UsageError, "no delta preset"),
    ]
    for wrong, kind, words in cases:
        with pytest.raises(kind, match=words):
            pretrain(wrong)
    with pytest.raises(UsageError, match="beyond the context"):
        pretraining.plan(recipe(tokenizer, text, output, row_length=65))


def test_a_gguf_gives_its_tokenizer(tiny_gguf: Path, tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny_models.TEXTS), "utf-8")
    recipe = PretrainRecipe(
        text=(text,), tokenizer=tiny_gguf, output=tmp_path / "out", steps=1, batch=1, width=16,
        layers=1, heads=1, mlp=32, context=64, row_length=16, device="cpu", threads=1,
    )  # fmt: skip
    pretraining.pretrain(recipe)
    found = from_tokenizer_json(tmp_path / "out" / "tokenizer.json")
    assert found.fingerprint == from_tokenizer_json(tiny_folder / "tokenizer.json").fingerprint


def test_a_new_tokenizer_of_the_texts(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(tiny_models.TEXTS), "utf-8")
    recipe = PretrainRecipe(
        text=(text,), vocabulary=400, output=tmp_path / "out", steps=1, batch=1, width=16,
        layers=1, heads=1, mlp=32, context=64, row_length=16, device="cpu", threads=1,
    )  # fmt: skip
    pretraining.pretrain(recipe)
    assert len(from_tokenizer_json(tmp_path / "out" / "tokenizer.json")) == 400
    with pytest.raises(UsageError, match="too small"):
        pretraining.plan(replace(recipe, vocabulary=310))
    with pytest.raises(UsageError, match="either --tokenizer"):
        replace(recipe, vocabulary=0)
    with pytest.raises(UsageError, match="at least 300"):
        replace(recipe, vocabulary=20)
    assert replace(recipe, vocabulary=2**20).vocabulary == 2**20
