"""Deltas that another one learns on top of: the checkpoint and its adapter say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_models
from cmc_export import adapter_export
from cmc_export.adapter_export import Choices
from cmc_export.frozen import frozen, parse_with_adapter
from cmc_local.errors import InputError, UsageError
from cmc_local.text.prompts import named_form
from cmc_local.text.vocabulary import from_tokenizer_json

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0], [1, 4, 0, 0, 0]])
KEEP = torch.tensor([[0, 0, 1, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16, as the exported graph asks for."""
    import json

    from cmc_export import delta_model

    folder = tmp_path_factory.mktemp("frozen") / "delta"
    words = tiny_models.tokenizer()
    shape = delta_model.preset(
        "nano-s", vocabulary=words.get_vocab_size(), context=64, width=32, layers=1, heads=2, mlp=48
    )
    delta_model.build(shape, bos_id=1, eos_id=2, seed=3).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "llama"
    return folder


def test_an_adapter_says_what_its_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = from_tokenizer_json(checkpoint / "tokenizer.json")
    choices = Choices(prompt=named_form("cmc"), alpha=0.7, precisions=("fp32",))
    adapter_export.export(checkpoint, tmp_path / "adapter", choices)
    mine, theirs = (
        frozen(folder, vocabulary, CPU, None) for folder in (checkpoint, tmp_path / "adapter")
    )
    assert (mine.alpha, theirs.alpha) == (1.0, 0.7)
    expected = mine.logits(IDS, KEEP)
    assert expected.shape == (4, len(vocabulary))
    assert not expected.requires_grad
    torch.testing.assert_close(theirs.logits(IDS, KEEP), expected, atol=1e-5, rtol=1e-4)
    assert frozen(tmp_path / "adapter", vocabulary, CPU, 0.2).alpha == 0.2


def test_an_adapter_without_fp32_is_taken_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = from_tokenizer_json(checkpoint / "tokenizer.json")
    choices = Choices(prompt=named_form("cmc"), precisions=("fp16", "int8"))
    adapter_export.export(checkpoint, tmp_path / "adapter", choices)
    mine, theirs = (
        frozen(folder, vocabulary, CPU, None) for folder in (checkpoint, tmp_path / "adapter")
    )
    expected = mine.logits(IDS, KEEP)
    off = (theirs.logits(IDS, KEEP) - expected).abs().max() / expected.abs().max()
    assert 0 < off < 5e-3  # fp16; 8 bits are further away


def test_another_vocabulary_is_refused(checkpoint: Path) -> None:
    other = from_tokenizer_json(tiny_models.tokenizer("byte-level").to_str().encode())
    with pytest.raises(InputError, match="another vocabulary"):
        frozen(checkpoint, other, CPU, None)


def test_strength_behind_a_colon(tmp_path: Path) -> None:
    with_colon = tmp_path / "a:1"
    with_colon.mkdir()
    assert parse_with_adapter("some/delta") == (Path("some/delta"), None)
    assert parse_with_adapter("some/delta:0.5") == (Path("some/delta"), 0.5)
    assert parse_with_adapter(str(with_colon)) == (with_colon, None)
    with pytest.raises(UsageError, match="no number"):
        parse_with_adapter("some/delta:abc")
