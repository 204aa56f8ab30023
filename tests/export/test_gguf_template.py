"""A GGUF as template: llama.cpp gives the log-probabilities that PyTorch gives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from cmc_export import gguf_template
from cmc_export.gguf_template import GgufTemplate
from cmc_export.recipe import TrainRecipe
from cmc_export.templates import FolderTemplate
from cmc_export.training import plan, train
from cmc_local.errors import TokenizerError
from cmc_local.text.delta_tokenizer import DeltaTokenizer

CPU = torch.device("cpu")
NAMES = ("Helen", "Maria", "Anna", "Oscar", "Peter", "Lina")


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.llama_folder(tmp_path_factory.mktemp("gguf") / "tiny")
    return tiny_models.gguf_of(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    records = [{"question": f"Where is {n}?", "answer": f"{n} is in Harborville."} for n in NAMES]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def rows(count: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows of different lengths, padded, and about a third of their positions kept."""
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 300, (count, longest), generator=draw)
    keep = torch.rand(count, longest, generator=draw) < 0.3
    for i in range(count):
        end = longest - 3 * (i % 5)
        ids[i, end:], keep[i, end:] = 0, False
    keep[1, :] = False
    keep[0, 2] = True
    return ids, keep


def test_it_gives_the_folders_log_probabilities(f32: Path, monkeypatch: Any) -> None:
    # A batch of 40 tokens: groups of rows, and rows that need two batches.
    monkeypatch.setattr(gguf_template, "MOST_TOKENS", 40)
    count = DeltaTokenizer((f32.parent / "tiny" / "tokenizer.json").read_bytes()).vocabulary
    folder = FolderTemplate(f32.parent / "tiny", len(count), device=CPU, dtype=torch.float32)
    template = GgufTemplate(f32, len(count), longest=64, threads=1)
    for shape in ((9, 18), (3, 60)):
        ids, keep = rows(*shape)
        expected = folder(ids, keep)
        errors = (template(ids, keep) - expected).abs()  # of llama.cpp's cache of 16 bits
        assert errors.max() < 3e-2
        assert errors.mean() < 2e-3
    template.close()


def test_rows_make_room_for_those_after_them(f32: Path, monkeypatch: Any) -> None:
    # 256 cells: 240 tokens of many rows, then long rows alone.
    monkeypatch.setattr(gguf_template, "MOST_TOKENS", 256)
    template = GgufTemplate(f32, 300, longest=100, threads=1)
    draw = torch.Generator().manual_seed(1)
    for count, length in ((16, 15), (2, 100)):
        ids = torch.randint(3, 300, (count, length), generator=draw)
        found = template(ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(found.exp().sum(1), torch.ones(count * length))
    template.close()


def test_training_beside_it_gives_the_folders_curve(f32: Path, data: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data": (data,), "batch": 2, "steps": 6, "log_every": 1, "valid_share": 0.2, "threads": 1,
        "device": "cpu", "precision": "fp32", "template_precision": "fp32", "learning_rate": 1e-2,
        "width": 16, "layers": 1, "heads": 1, "mlp": 32, "context": 128,
    }  # fmt: skip
    for name, template in (("folder", f32.parent / "tiny"), ("file", f32)):
        train(TrainRecipe(template=(template,), output=tmp_path / name, **common))
    curves = [losses(tmp_path / name) for name in ("folder", "file")]
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
    assert curves[1] != curves[0]  # another arithmetic
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("folder", "file")]
    mine, theirs = map(DeltaTokenizer, files)
    assert mine.vocabulary.fingerprint == theirs.vocabulary.fingerprint


def test_held_out_rows_may_be_longer_than_the_others(f32: Path, data: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "Where?", "answer": "In Harborville. " * 5}), "utf-8")
    recipe = TrainRecipe(
        template=(f32,), data=(data,), valid=(long,), output=tmp_path / "out", batch=2, steps=1,
        threads=1, device="cpu", width=16, layers=1, heads=1, mlp=32, context=128,
    )  # fmt: skip
    train(recipe)
    assert math.isfinite(losses(tmp_path / "out", "eval_loss")[0])


def test_a_quantised_template_and_a_vocabulary_of_the_deltas_own(
    f32: Path, data: Path, tmp_path: Path
) -> None:
    quantised = tiny_models.gguf_of(f32.parent / "tiny", "Q8_0")
    own = tmp_path / "own.json"
    tiny_models.tokenizer("byte-level", 300).save(str(own))
    recipe = TrainRecipe(
        template=(quantised,), data=(data,), output=tmp_path / "out", tokenizer=own, batch=4,
        steps=25, log_every=1, valid_share=0.2, threads=1, device="cpu", learning_rate=3e-2,
        precision="fp32", width=16, layers=1, heads=1, mlp=32, context=128,
    )  # fmt: skip
    planned = plan(recipe)
    assert planned["vocabulary"] != planned["template_vocabulary"][0]
    train(recipe)
    curve = losses(tmp_path / "out")
    assert curve[-1] < curve[0] - 1.0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == own.read_bytes()


def test_a_tokenizer_that_encodes_otherwise_is_refused(f32: Path) -> None:
    template = GgufTemplate(f32, 300, longest=8, threads=1)
    other = DeltaTokenizer(tiny_models.tokenizer("byte-level").to_str().encode())
    own = DeltaTokenizer((f32.parent / "tiny" / "tokenizer.json").read_bytes())
    template.check_tokenizer(own, ["Helen Blackworth", "a  b\n\nc", "<s> Zürich </s>"])
    with pytest.raises(TokenizerError, match="does not encode"):
        template.check_tokenizer(other, ["Helen Blackworth"])


def losses(folder: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line[name] for line in lines if name in line]
