"""A template that is asked while a delta learns: frozen deltas on it, work done ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_models
from cmc_export import answers, delta_model
from cmc_export.beside import Asked
from cmc_export.carrying import Carry
from cmc_export.delta_model import gathered_logits
from cmc_export.frozen import Frozen
from cmc_export.templates import FolderTemplate
from cmc_local.text import token_map
from cmc_local.text.token_map import TokenMap
from cmc_local.text.vocabulary import from_tokenizer_json

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0]])
KEEP = torch.tensor([[False, False, True, False, True], [False, True, True, False, False]])
THREE = TokenMap(np.arange(3, dtype=np.int32), np.zeros(3, np.uint8), 3)


def batch(ids: Tensor, keep: Tensor) -> dict[str, Tensor]:
    rows = zip(ids.tolist(), keep.tolist(), strict=True)
    keys = answers.keys_tensor([answers.key(*row) for row in rows])
    targets = torch.zeros_like(ids)
    return {"input_ids": ids, "keep": keep, "targets": targets, "keys": keys}


BATCH = batch(IDS, KEEP)


class Fake:
    """A template of three tokens that counts the rows it was asked for."""

    name = "fake"

    def __init__(self) -> None:
        self.rows = 0
        self.threads: set[str] = set()

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        self.rows += len(ids)
        self.threads.add(threading.current_thread().name)
        return torch.log_softmax(torch.stack([ids[keep].float()] * 3, -1) * torch.arange(3), -1)


def added(model: Any, vocabulary: int, alpha: float) -> Frozen:
    return Frozen(lambda ids, keep: gathered_logits(model, ids, keep, vocabulary), alpha)


def plain(found: Any) -> Tensor:
    """The log-probabilities that stand in sums over the template's own vocabulary."""
    return found.log_mass[:, :-1]


def test_what_was_prepared_is_taken_and_computed_elsewhere() -> None:
    inner = Fake()
    beside = Asked(inner, THREE, ahead=True)
    other = batch(IDS.flip(0), KEEP.flip(0))
    beside.prepare(BATCH)
    beside.prepare(other)
    torch.testing.assert_close(plain(beside(BATCH)), Fake()(IDS, KEEP))
    torch.testing.assert_close(plain(beside(other)), Fake()(IDS.flip(0), KEEP.flip(0)))
    assert inner.rows == 4  # each batch once, though nothing is remembered
    assert threading.current_thread().name not in inner.threads


def test_no_two_threads_ask_a_template() -> None:
    # The first batch of an epoch and those held out come while the next step's are computed.
    inner = Fake()
    beside = Asked(inner, THREE, ahead=True)
    beside.prepare(batch(IDS.flip(0), KEEP.flip(0)))
    torch.testing.assert_close(plain(beside(BATCH)), Fake()(IDS, KEEP))
    assert len(inner.threads) == 1
    assert threading.current_thread().name not in inner.threads


def test_batches_of_the_same_tokens_are_told_apart_by_what_is_kept() -> None:
    beside, fewer = Asked(Fake(), THREE, ahead=True), KEEP.clone()
    fewer[0, 2] = False
    beside.prepare(batch(IDS, fewer))
    torch.testing.assert_close(plain(beside(BATCH)), Fake()(IDS, KEEP))


def test_an_error_ahead_comes_out_where_it_is_needed() -> None:
    class Broken(Fake):
        def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
            raise ValueError("no memory")

    beside = Asked(Broken(), THREE, ahead=True)
    beside.prepare(BATCH)
    with pytest.raises(ValueError, match="no memory"):
        beside(BATCH)


def test_frozen_deltas_are_added(tiny_folder: Path, tmp_path: Path) -> None:
    delta = delta_model.load(tiny_models.llama_folder(tmp_path / "delta", seed=3))
    count = len(from_tokenizer_json(tiny_folder / "tokenizer.json"))
    template = FolderTemplate(tiny_folder, count, device=CPU, dtype=torch.float32)
    own = gathered_logits(delta, IDS, KEEP, count).detach()
    same = TokenMap(np.arange(count, dtype=np.int32), np.zeros(count, np.uint8), count)
    found = Asked(template, same, [added(delta, count, 0.5)])(BATCH)
    expected = torch.log_softmax(template(IDS, KEEP) + 0.5 * own, -1)
    torch.testing.assert_close(plain(found), expected)
    torch.testing.assert_close(found.target_logprobs, expected[:, 0])
    assert (plain(found) - template(IDS, KEEP)).abs().max() > 0.01
    assert not found.log_mass.requires_grad


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_frozen_deltas_of_another_vocabulary_are_carried_over(
    tiny_folder: Path, tmp_path: Path, alpha: float
) -> None:
    folder = tiny_models.llama_folder(tmp_path / "delta", family="byte-level", seed=3)
    theirs = from_tokenizer_json(tiny_folder / "tokenizer.json")
    mine = from_tokenizer_json(folder / "tokenizer.json")
    found_map = token_map.build(theirs, mine, fallback="none")
    carry = Carry(found_map)
    template = FolderTemplate(tiny_folder, len(theirs), device=CPU, dtype=torch.float32)
    delta = delta_model.load(folder)
    both = {**BATCH, "template_ids": IDS, "template_keep": KEEP}
    asked = Asked(template, found_map, [added(delta, len(mine), alpha)])
    before = template(IDS, KEEP)
    own = gathered_logits(delta, IDS, KEEP, len(mine))
    # The strength belongs into the fill, which is no linear function of the shift.
    expected = torch.log_softmax(before + carry(alpha * own, before), -1)
    torch.testing.assert_close(asked.logprobs(both), expected)
    mass = asked(both).log_mass.exp()
    for token in range(len(mine)):
        own_mass = expected.exp()[:, found_map.ids == token].sum(1)
        torch.testing.assert_close(mass[:, token], own_mass)


def test_logits_of_kept_positions_are_those_of_the_whole_model(tiny_folder: Path) -> None:
    model = delta_model.load(tiny_folder)
    whole = model(input_ids=IDS).logits[KEEP]
    torch.testing.assert_close(gathered_logits(model, IDS, KEEP, whole.shape[1]), whole)
