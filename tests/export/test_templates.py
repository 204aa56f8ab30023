"""Templates: log-probabilities at the asked positions, whatever is behind the border."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_models
from cmc_export import delta_model
from cmc_export.templates import (
    FolderTemplate,
    check_same_vocabulary,
    parameter_count,
)
from cmc_local.errors import InputError, TokenizerError
from cmc_local.text.vocabulary import from_tokenizer_json

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
KEEP = torch.tensor([[False, False, True, False, True], [False, True, True, False, False]])


def size(folder: Path) -> int:
    return len(from_tokenizer_json(folder / "tokenizer.json"))


def template(folder: Path, vocabulary: int | None = None, **more: bool) -> FolderTemplate:
    count = vocabulary or size(folder)
    return FolderTemplate(folder, count, device=CPU, dtype=torch.float32, **more)


def test_folder_gives_log_probabilities_of_the_kept_positions(tiny_folder: Path) -> None:
    model = delta_model.load(tiny_folder)
    with torch.no_grad():
        expected = torch.log_softmax(model(input_ids=IDS).logits, -1)[KEEP]
    found = template(tiny_folder)(IDS, KEEP)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4))
    assert not found.requires_grad


def test_log_probabilities_of_all_and_of_fewer_tokens(tiny_folder: Path) -> None:
    with torch.no_grad():
        logits = delta_model.load(tiny_folder)(input_ids=IDS).logits[KEEP]
    found = template(tiny_folder)(IDS, KEEP)
    torch.testing.assert_close(found, torch.log_softmax(logits, -1), rtol=1e-5, atol=1e-5)
    fewer = template(tiny_folder, vocabulary=100)(IDS, KEEP)
    assert fewer.shape == (4, 100)
    torch.testing.assert_close(fewer.exp().sum(-1), torch.ones(4))


def test_padding_on_the_right_changes_nothing(tiny_folder: Path) -> None:
    ask = template(tiny_folder)
    alone = ask(IDS[1:, :3], KEEP[1:, :3])
    torch.testing.assert_close(ask(IDS, KEEP)[2:], alone, rtol=1e-5, atol=1e-5)


def test_another_vocabulary_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    other = tiny_models.llama_folder(tmp_path / "other", family="byte-level")
    vocabulary = from_tokenizer_json(tiny_folder / "tokenizer.json")
    check_same_vocabulary(tiny_folder, vocabulary)
    with pytest.raises(InputError, match="another vocabulary") as caught:
        check_same_vocabulary(other, vocabulary)
    assert "\n" not in str(caught.value)


def test_a_template_smaller_than_its_tokenizer_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="logits for"):
        template(tiny_folder, vocabulary=100_000)


def test_folders_that_are_no_template(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        template(tmp_path, vocabulary=5)
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="safetensors"):
        template(tmp_path, vocabulary=5)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        check_same_vocabulary(tmp_path, from_tokenizer_json(tiny_folder / "tokenizer.json"))


def test_parameters_are_counted_without_weights(tiny_folder: Path) -> None:
    assert parameter_count(tiny_folder) == delta_model.load(tiny_folder).num_parameters()
