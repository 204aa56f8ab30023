"""The losses, with the arithmetic beside them; vocabularies of three and four tokens, float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmc_export import objective
from cmc_local.delta.adapter import Normalization

MODES = get_args(Normalization)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_shift_multiplies_the_templates_probabilities() -> None:
    # Template 1/2, 1/4, 1/4; the shift doubles token 1: 2/4, 2/4, 1/4, in all 5/4 -> 2/5, 2/5, 1/5.
    steered = objective.combine(row(0.5, 0.25, 0.25).log(), row(0.0, math.log(2.0), 0.0))
    assert steered.softmax(-1).tolist()[0] == pytest.approx([0.4, 0.4, 0.2])
    losses = objective.token_losses(steered, torch.tensor([1]))
    assert losses.tolist() == pytest.approx([-math.log(0.4)])


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_probability_less_target_in_every_mode(mode: Normalization) -> None:
    # d loss / d delta = p - onehot: (2/5, 2/5, 1/5) - (0, 1, 0).
    delta = row(0.0, math.log(2.0), 0.0).requires_grad_()
    steered = objective.combine(row(0.5, 0.25, 0.25).log() + 3.0, delta, mode)
    objective.instruct(objective.token_losses(steered, torch.tensor([1]))).backward()
    assert delta.grad is not None
    assert delta.grad.tolist()[0] == pytest.approx([0.4, -0.6, 0.2])


@given(st.integers(0, 2**31 - 1))
def test_modes_agree_in_loss_and_gradient(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    template = 5 * torch.randn(6, 4, dtype=torch.float64, generator=random)
    targets = torch.randint(0, 4, (6,), generator=random)
    results = []
    for mode in MODES:
        delta = torch.randn(6, 4, dtype=torch.float64, generator=random.manual_seed(seed))
        delta.requires_grad_()
        loss = objective.instruct(
            objective.token_losses(objective.combine(template, delta, mode), targets)
        )
        loss.backward()
        results.append((loss.detach(), delta.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-12)


def test_modes_differ_by_a_constant_per_position_only() -> None:
    template, delta = row(1.0, 2.0, 4.0), row(0.5, -1.0, 0.0)
    added = objective.combine(template, delta, "add")
    for mode in MODES[1:]:
        difference = objective.combine(template, delta, mode) - added
        assert difference.max() - difference.min() == pytest.approx(0.0, abs=1e-12)
        assert difference.abs().max() > 0.1


def test_instruct_is_the_mean_of_the_tokens() -> None:
    assert objective.instruct(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0
    assert objective.instruct(torch.tensor([])).item() == 0.0


def test_parts_of_a_step_add_up_to_the_whole_step() -> None:
    whole = objective.instruct(torch.tensor([1.0, 2.0, 6.0]))
    first = objective.instruct(torch.tensor([1.0]), count=3)
    second = objective.instruct(torch.tensor([2.0, 6.0]), count=torch.tensor(3.0))
    assert (first + second).item() == pytest.approx(whole.item())


def test_forget_is_ascent_up_to_the_bound_plus_descent() -> None:
    # -(min(0.5, 2) + min(5, 2)) / 2 = -1.25;  (1 + 3 + 5) / 3 = 3.
    loss = objective.forget(torch.tensor([0.5, 5.0]), torch.tensor([1.0, 3.0, 5.0]), bound=2.0)
    assert loss.item() == pytest.approx(1.75)


def test_forget_uses_the_steps_counts() -> None:
    loss = objective.forget(torch.tensor([1.0]), torch.tensor([3.0]), 2.0, counts=(2, 3))
    assert loss.item() == pytest.approx(-0.5 + 1.0)


def test_a_token_beyond_the_bound_is_pushed_no_more() -> None:
    losses = torch.tensor([0.5, 5.0], requires_grad=True)
    objective.bounded_ascent(losses, bound=2.0).sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [-1.0, 0.0]


@given(st.lists(st.floats(0.0, 1e6), min_size=1), st.floats(0.1, 20.0))
def test_forget_never_falls_below_the_bound(losses: list[float], bound: float) -> None:
    away = torch.tensor(losses, dtype=torch.float64)
    loss = objective.forget(away, torch.zeros(1, dtype=torch.float64), bound)
    assert loss.item() >= -bound * (1 + 1e-9)


def test_uniform_loss_is_that_of_equal_probabilities() -> None:
    flat = objective.token_losses(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([2]))
    assert objective.uniform_loss(4) == pytest.approx(flat.item())
