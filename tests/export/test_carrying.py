"""Carrying a shift over within the training graph: as at run time, and with a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import tiny_models
from cmc_export.carrying import Carry, Stream, shared_places
from cmc_export.examples import Encoder, Side, collate
from cmc_local.settings import Control
from cmc_local.steer.control import MappedShift
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import named_form
from cmc_local.text.token_map import TokenMap
from cmc_local.text.vocabulary import Role, Vocabulary


def a_map(*ids: int, delta_size: int) -> TokenMap:
    return TokenMap(np.array(ids, np.int32), np.zeros(len(ids), np.uint8), delta_size)


def words(*texts: str) -> Vocabulary:
    """Token 0 is the end, the others are these texts."""
    entries = [(b"", Role.EOS, "</s>"), *((t.encode(), Role.NORMAL, t) for t in texts)]
    return Vocabulary.assemble(iter(entries), eos_id=0)


def tokenizer(family: Any) -> DeltaTokenizer:
    return DeltaTokenizer(tiny_models.tokenizer(family).to_str().encode())


def test_unmapped_tokens_keep_their_probability() -> None:
    # steer/control.py: shift (ln 3, 0) on three equal tokens, the last unmapped: 3/6, 1/6, 2/6
    carry = Carry(a_map(0, 1, -1, delta_size=2))
    template = torch.log_softmax(torch.zeros(1, 3), -1)
    shift = carry(torch.tensor([[np.log(3.0), 0.0]]).float(), template)
    found = torch.softmax(template + shift, -1)
    torch.testing.assert_close(found, torch.tensor([[3 / 6, 1 / 6, 2 / 6]]))


@example([-1, -1], 0)
@given(st.lists(st.integers(-1, 4), min_size=2, max_size=9), st.integers(0, 2**20))
def test_it_is_what_the_runner_adds(ids: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = a_map(*ids, delta_size=5)
    base, delta = rng.normal(size=len(ids)) * 3, rng.normal(size=5) * 3
    base, delta = base.astype(np.float32), delta.astype(np.float32)
    mapped = MappedShift(found, Control())
    expected = mapped.row(base.copy(), delta, 1.0)
    mine = Carry(found)(torch.from_numpy(delta)[None], torch.from_numpy(base)[None])
    np.testing.assert_allclose(mine[0].numpy(), expected, atol=2e-4)


def test_the_gradient_reaches_every_token_that_stands_for_others() -> None:
    # Delta token 0 stands for base tokens 0 and 1: d(-log p_0)/d(delta_0) = p_0 + p_1 - 1
    delta = torch.zeros(1, 2, requires_grad=True)
    template = torch.log_softmax(torch.zeros(1, 4), -1)
    logits = template + Carry(a_map(0, 0, 1, 1, delta_size=2))(delta, template)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    torch.testing.assert_close(delta.grad, torch.tensor([[2 / 4 - 1, 2 / 4]]))


def test_places_where_both_streams_end() -> None:
    coarse, fine = words("Who", "Helen", " Marsh"), words("W", "ho", "Hel", "en", " Marsh")
    delta = Stream([1, 2, 3, 0], [False, True, True, True], coarse)
    template = Stream([1, 2, 3, 4, 5, 0], [False, False, True, True, True, True], fine)
    # After "Who", "Helen", " Marsh": 0, 1, 2 there and 1, 3, 4 here; after "Hel" here alone.
    assert shared_places(delta, template) == [(0, 1), (1, 3), (2, 4)]


def test_places_of_the_earlier_of_two_answers() -> None:
    coarse, fine = words("Who", "Ann", "Bo"), words("Who", "A", "nn", "Bo")
    delta = Stream([1, 2, 0, 1, 3, 0], [False, True, True, False, True, True], coarse)
    template = Stream([1, 2, 3, 0, 1, 4, 0], [False, True, True, True, False, True, True], fine)
    assert shared_places(delta, template) == [(0, 0), (1, 2), (3, 4), (4, 5)]


def test_nothing_is_paired_before_a_token_without_text() -> None:
    # The delta has no token for "é": one in the loss has no bytes, and would share "." with its own
    # place and shift those before it by two.
    entries = [(b"", Role.EOS, "</s>"), (b"", Role.CONTROL, "<unk>")]
    entries += [(t.encode(), Role.NORMAL, t) for t in ("Who", "Caf", ".")]
    coarse, fine = Vocabulary.assemble(iter(entries), eos_id=0), words("Who", "Caf", "é", ".")
    delta = Stream([2, 3, 1, 4, 0], [False, True, True, True, True], coarse)
    template = Stream([1, 2, 3, 4, 0], [False, True, True, True, True], fine)
    assert shared_places(delta, template) == [(2, 2), (3, 3)]


@pytest.mark.parametrize("families", [("sentencepiece", "byte-level"), ("byte-level",) * 2])
def test_a_batch_pairs_the_two_streams(families: tuple[str, str]) -> None:
    mine, theirs = map(tokenizer, families)
    encoder = Encoder(mine, named_form("cmc"), 99, [Side(theirs, 99)])
    messages: Any = [
        {"role": "user", "content": "Where was she born?"},
        {"role": "assistant", "content": "In Harborville, by the sea."},
    ]
    row = encoder.row(messages)
    batch = collate([{"input_ids": row.ids, "rows": [row]}])
    assert ("template_ids" in batch) == (families[0] != families[1])
    targets = batch["targets"][batch["keep"]].tolist()
    assert targets[-1] == theirs.eos_id
    text = b"".join(theirs.vocabulary.tokens[i] for i in targets)
    assert b"In Harborville, by the sea.".startswith(text[:2])
    if "template_ids" not in batch:
        return
    assert int(batch["template_keep"].sum()) == len(targets)
    for at, target in zip(batch["template_keep"][0].nonzero()[:, 0].tolist(), targets, strict=True):
        if target != theirs.eos_id:
            assert int(batch["template_ids"][0, at + 1]) == target


def test_a_batch_takes_one_template_and_the_same_one_again() -> None:
    mine, theirs = tokenizer("sentencepiece"), tokenizer("byte-level")
    encoder = Encoder(mine, named_form("cmc"), 99, [Side(mine, 99), Side(theirs, 99)])
    rows = [
        encoder.row(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Helen" * n}]
        )
        for n in range(1, 9)
    ]
    items: Any = [{"input_ids": row.ids, "rows": [row]} for row in rows]
    chosen = [int(collate([item])["which"]) for item in items]
    assert set(chosen) == {0, 1}
    assert chosen == [int(collate([item])["which"]) for item in items]
    for item, which in zip(items, chosen, strict=True):
        assert ("template_ids" in collate([item])) == (which == 1)
