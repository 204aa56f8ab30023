"""Sums by delta token against the full computation over the template's vocabulary, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmc_export import forgetting, objective
from cmc_export.carrying import Carry
from cmc_export.sums import Fibres, Steered, Sums, joined
from cmc_local.errors import InputError
from cmc_local.text.token_map import TokenMap

ROWS = torch.tensor([0, 0, 1, 1, 1, 2])


def a_map(ids: list[int], delta_size: int) -> TokenMap:
    return TokenMap(np.array(ids, np.int32), np.zeros(len(ids), np.uint8), delta_size)


class Case:
    """Six positions of a random template and delta, and a random map with unmapped tokens."""

    def __init__(self, seed: int, template: int = 40, delta: int = 11) -> None:
        rng = torch.Generator().manual_seed(seed)
        ids = torch.randint(-1, delta, (template,), generator=rng).tolist()
        self.map = a_map(ids, delta)
        logits = 4 * torch.randn(6, template, generator=rng, dtype=torch.float64)
        self.logprobs = torch.log_softmax(logits, -1)
        self.targets = torch.randint(0, template, (6,), generator=rng)
        self.delta = 3 * torch.randn(6, delta, generator=rng, dtype=torch.float64)

    def full(self, delta: torch.Tensor) -> torch.Tensor:
        """Steered logits over the template's whole vocabulary."""
        return objective.combine(self.logprobs, Carry(self.map)(delta, self.logprobs), "add")

    def sums(self) -> Sums:
        return Fibres(self.map)(self.logprobs, self.targets)


LOSSES: dict[str, Any] = {
    "ce": lambda loss, before, kl: loss.mean(),
    "kl": lambda loss, before, kl: kl.mean(),
    "ascent": lambda loss, before, kl: forgetting.gradient_ascent(loss, 3.0),
    "npo": lambda loss, before, kl: forgetting.npo(loss, before, ROWS, 3, 0.5),
    "simnpo": lambda loss, before, kl: forgetting.simnpo(loss, ROWS, 3, 2.5, 0.1),
    "dpo": lambda loss, before, kl: forgetting.dpo(
        loss[:3], before[:3], ROWS[:3], loss[3:], before[3:], ROWS[3:] - 1, 2, 0.3
    ),
}


def value_and_gradient(name: str, case: Case, *, by_sums: bool) -> tuple[float, torch.Tensor]:
    delta = case.delta.clone().requires_grad_(True)
    if by_sums:
        steered = Steered(case.sums(), delta)
        loss, kl = steered.losses(), steered.divergences()
        before = -steered.template.target_logprobs
    else:
        logits = case.full(delta)
        loss = objective.token_losses(logits, case.targets)
        kl = forgetting.kl_to_template(case.logprobs, torch.log_softmax(logits, -1))
        before = objective.token_losses(case.logprobs, case.targets)
    found = LOSSES[name](loss, before, kl)
    found.backward()
    assert delta.grad is not None
    return float(found.detach()), delta.grad


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_losses_and_gradients_equal_the_full_computation(name: str, seed: int) -> None:
    case = Case(seed)
    value, gradient = value_and_gradient(name, case, by_sums=True)
    expected, full = value_and_gradient(name, case, by_sums=False)
    assert value == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, full, rtol=1e-6, atol=1e-6)


def test_deltas_underneath_belong_to_the_template() -> None:
    case, under = Case(3), Case(4)
    steered = case.logprobs + Carry(case.map)(0.5 * under.delta, case.logprobs)
    case.logprobs = torch.log_softmax(steered, -1)
    value, gradient = value_and_gradient("kl", case, by_sums=True)
    expected, full = value_and_gradient("kl", case, by_sums=False)
    assert value == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(gradient, full)


def test_a_constant_in_the_delta_changes_nothing() -> None:
    case = Case(5)
    one, other = (Steered(case.sums(), case.delta + c) for c in (0.0, 7.0))
    torch.testing.assert_close(one.losses(), other.losses())


def test_by_hand() -> None:
    # p = 1/2, 1/4 on delta token 0; 1/8 on delta token 1; 1/8 has no counterpart. s = ln 2, 0.
    logprobs = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8]]).log()
    fibres = Fibres(a_map([0, 0, 1, -1], 3))
    found = Steered(fibres(logprobs, torch.tensor([3])), torch.tensor([[math.log(2.0), 0.0, 9.0]]))
    fill = (2 * 3 / 4 + 1 / 8) / (7 / 8)  # delta token 2 has no template token: no mass to shift
    assert found.shift[0, 3].exp() == pytest.approx(fill)
    assert found.losses().exp() == pytest.approx((1.5 + 0.125 + fill / 8) / (fill / 8))


def test_the_templates_own_vocabulary_keeps_every_row() -> None:
    case = Case(6, template=11)
    same = Fibres(a_map(list(range(11)), 11))(case.logprobs, case.targets)
    torch.testing.assert_close(same.log_mass[:, :-1], case.logprobs)
    found = Steered(same, case.delta).losses()
    full = objective.token_losses(case.logprobs + case.delta, case.targets)
    torch.testing.assert_close(found, full)


def test_impossible_tokens_make_no_nan() -> None:
    logprobs = torch.log_softmax(torch.tensor([[300.0, 0.0, -300.0, -900.0]]), -1)
    delta = torch.tensor([[1.0, 0.0]], requires_grad=True)
    found = Steered(Fibres(a_map([-1, 0, 1, 1], 2))(logprobs, torch.tensor([2])), delta)
    found.losses().sum().backward()
    assert torch.isfinite(found.losses()).all()
    assert delta.grad is not None and torch.isfinite(delta.grad).all()


def test_positions_are_picked_and_joined() -> None:
    found = Case(7).sums()
    again = joined([found[ROWS < 1], found[ROWS >= 1]])
    assert len(again) == 6
    torch.testing.assert_close(again.log_mass, found.log_mass)
    assert again.targets.tolist() == found.targets.tolist()


def test_a_map_without_any_counterpart_is_refused() -> None:
    with pytest.raises(InputError, match="tokenizer"):
        Fibres(a_map([-1, -1], 3))
