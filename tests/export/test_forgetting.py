"""The losses for forgetting, with the arithmetic beside them; two or three sequences, float64."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmc_export import forgetting

# Sequence 0 has the tokens 1, 2 and 3 (sum 6), sequence 1 has 4 and 0 (sum 4).
ROWS = torch.tensor([0, 0, 1, 0, 1])


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOSSES = numbers(1.0, 2.0, 4.0, 3.0, 0.0)
REFERENCE = numbers(0.5, 1.5, 3.0, 2.0, 2.0)  # sums 4 and 5: log(pi / pi_ref) = -2 and +1


def softplus(x: float) -> float:
    return math.log(1.0 + math.exp(x))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def gradient(loss: Callable[[Tensor], Tensor], losses: Tensor = LOSSES) -> list[float]:
    """d loss / d losses, one number a token."""
    leaf = losses.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    values: list[float] = leaf.grad.tolist()
    return values


def npo(losses: Tensor, beta: float = 0.5, rows: Tensor = ROWS, n: int = 2) -> Tensor:
    return forgetting.npo(losses, REFERENCE, rows, n, beta)


def simnpo(losses: Tensor, beta: float = 0.5, gamma: float = 0.25) -> Tensor:
    return forgetting.simnpo(losses, ROWS, 2, beta, gamma)


def test_examples_in_the_docstrings_hold() -> None:
    failed, attempted = doctest.testmod(forgetting)
    assert failed == 0
    assert attempted >= 15


def test_sums_and_lengths_go_by_row_in_any_order() -> None:
    sums = forgetting.sequence_sums(LOSSES, ROWS, 3)
    assert sums.tolist() == [6.0, 4.0, 0.0]
    assert sums.dtype == torch.float64
    assert forgetting.sequence_lengths(ROWS, 3).tolist() == [3, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), max_size=20))
def test_sums_equal_a_loop(tokens: list[tuple[int, float]]) -> None:
    rows = torch.tensor([row for row, _ in tokens], dtype=torch.int64)
    slow = [sum(value for row, value in tokens if row == i) for i in range(5)]
    fast = forgetting.sequence_sums(numbers(*(value for _, value in tokens)), rows, 5)
    assert fast.tolist() == pytest.approx(slow, abs=1e-12)


def test_ascent_is_minus_the_mean_up_to_the_bound() -> None:
    # -(1 + 2 + 4 + 3 + 0) / 5 = -2;  bound 2.5: -(1 + 2 + 2.5 + 2.5 + 0) / 5 = -1.6.
    assert forgetting.gradient_ascent(LOSSES).item() == pytest.approx(-2.0)
    assert forgetting.gradient_ascent(LOSSES, bound=2.5).item() == pytest.approx(-1.6)
    bounded = gradient(lambda losses: forgetting.gradient_ascent(losses, bound=2.5))
    assert bounded == pytest.approx([-0.2, -0.2, 0.0, 0.0, -0.2])


def test_gradient_difference_is_ascent_plus_retain() -> None:
    # -(1 + 3) / 2 + (2 + 4 + 6) / 3 = -2 + 4 = 2;  with counts 4 and 6: -4 / 4 + 12 / 6 = 1.
    away, kept = numbers(1.0, 3.0), numbers(2.0, 4.0, 6.0)
    assert forgetting.gradient_difference(away, kept).item() == pytest.approx(2.0)
    parts = forgetting.gradient_difference(away, kept, counts=(4, torch.tensor(6.0)))
    assert parts.item() == pytest.approx(1.0)
    together = forgetting.gradient_ascent(away, 2.0) + forgetting.retain(kept)
    assert forgetting.gradient_difference(away, kept, 2.0).item() == pytest.approx(together.item())


def test_retain_is_descent() -> None:
    assert forgetting.retain(LOSSES).item() == pytest.approx(2.0)
    assert gradient(forgetting.retain) == pytest.approx([0.2] * 5)


def test_kl_is_from_the_template_to_the_steered_model() -> None:
    # 1/2 log(1/2 / 1/4) + 1/4 log(1/4 / 1/4) + 1/4 log(1/4 / 1/2) = 1/2 log 2 - 1/4 log 2.
    # The second position tells the directions apart (reversed it is 0.5108):
    # 0.9 log(0.9 / 0.5) + 0.1 log(0.1 / 0.5) = 0.5290 - 0.1609 = 0.3681.
    template = torch.stack([numbers(0.5, 0.25, 0.25), numbers(0.9, 0.1, 0.0)]).log()
    steered = torch.stack([numbers(0.25, 0.25, 0.5), numbers(0.5, 0.5, 0.0)]).log()
    kl = forgetting.kl_to_template(template, steered)
    assert kl.tolist() == pytest.approx([0.25 * math.log(2.0), 0.3681], abs=5e-5)
    assert forgetting.kl_to_template(template, template).tolist() == [0.0, 0.0]


def test_kl_pulls_the_shift_back_to_the_template() -> None:
    # d KL / d delta = steered - template: (2/5, 2/5, 1/5) - (1/2, 1/4, 1/4).
    template = numbers(0.5, 0.25, 0.25).log()[None]
    slope = gradient(
        lambda delta: forgetting.kl_to_template(
            template, torch.log_softmax(template + delta, -1)
        ).sum(),
        numbers(0.0, math.log(2.0), 0.0),
    )
    assert slope == pytest.approx([-0.1, 0.15, -0.05])


def test_kl_has_finite_gradients_beside_excluded_tokens() -> None:
    template = numbers(0.5, 0.5, 0.0).log()[None]
    slope = gradient(
        lambda delta: forgetting.kl_to_template(
            template, torch.log_softmax(template + delta, -1)
        ).sum(),
        numbers(0.0, math.log(3.0), 5.0),
    )
    assert slope == pytest.approx([0.25 - 0.5, 0.75 - 0.5, 0.0])


def test_kl_is_infinite_where_the_steered_model_excludes_a_token() -> None:
    template, steered = numbers(0.5, 0.5).log()[None], numbers(1.0, 0.0).log()[None]
    assert forgetting.kl_to_template(template, steered).tolist() == [math.inf]


def test_npo_by_hand() -> None:
    # Ratios -2 and +1, beta 1/2: 4 * (softplus(-1) + softplus(0.5)) / 2 = 2 * (0.3133 + 0.9741).
    assert npo(LOSSES).item() == pytest.approx(2.0 * (softplus(-1.0) + softplus(0.5)))
    assert npo(LOSSES).item() == pytest.approx(2.5747, abs=5e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_npo_at_the_reference(beta: float) -> None:
    at_reference = npo(REFERENCE, beta)
    assert at_reference.item() == pytest.approx(2.0 / beta * math.log(2.0))
    # Weight 2 sigmoid(0) = 1: half a unit (two sequences) of plain ascent on every token.
    assert gradient(lambda losses: npo(losses, beta), REFERENCE) == pytest.approx([-0.5] * 5)


def test_npo_pushes_forgotten_sequences_less() -> None:
    # -2 sigmoid(beta * ratio) / 2 sequences: sigmoid(-1) = 0.2689 and sigmoid(0.5) = 0.6225.
    forgotten, known = -sigmoid(-1.0), -sigmoid(0.5)
    assert gradient(npo) == pytest.approx([forgotten, forgotten, known, forgotten, known])


def test_npo_is_never_negative() -> None:
    # Each token 1,000 less likely than the template's: softplus(-1500) and softplus(-1000) are 0.
    assert npo(REFERENCE + 1000.0).item() == 0.0
    assert gradient(npo, REFERENCE + 1000.0) == pytest.approx([0.0] * 5)


@given(st.lists(st.floats(0.0, 20.0), min_size=5, max_size=5))
def test_npo_without_temperature_is_ascent(values: list[float]) -> None:
    # Proposition 1: NPO - (2 / beta) log 2 -> mean over sequences of log pi - log pi_ref.
    losses, beta = numbers(*values), 1e-5
    ascent = forgetting.sequence_sums(REFERENCE - losses, ROWS, 2).mean().item()
    rest = npo(losses, beta).item() - 2.0 / beta * math.log(2.0)
    assert rest == pytest.approx(ascent, abs=0.02)  # beta * ratio^2 / 4, ratios below 60: 0.009
    assert gradient(lambda leaf: npo(leaf, beta), losses) == pytest.approx([-0.5] * 5, abs=1e-3)


def test_simnpo_by_hand() -> None:
    # Mean losses 2 and 2, beta 1/2, gamma 1/4: 0.5 * 2 - 0.25 = 0.75; 4 * softplus(-0.75) = 1.5475.
    assert simnpo(LOSSES).item() == pytest.approx(4.0 * softplus(-0.75))
    assert simnpo(LOSSES).item() == pytest.approx(1.5475, abs=5e-5)
    # Mean losses 2 and 5, without a margin: 4 * (softplus(-1) + softplus(-2.5)) / 2.
    uneven = simnpo(LOSSES + numbers(0.0, 0.0, 6.0, 0.0, 0.0), gamma=0.0)
    assert uneven.item() == pytest.approx(2.0 * (softplus(-1.0) + softplus(-2.5)))


def test_simnpo_gradient_goes_by_length() -> None:
    # -2 sigmoid(gamma - beta * mean) / |y| / 2 sequences, sigmoid(-0.75) = 0.3208.
    weight = sigmoid(-0.75)
    long, short = -weight / 3.0, -weight / 2.0
    assert gradient(simnpo) == pytest.approx([long, long, short, long, short])


def test_simnpo_without_temperature_is_ascent_by_length() -> None:
    # 2 sigmoid(0) = 1: -1 / |y| a token, over two sequences.
    slope = gradient(lambda losses: simnpo(losses, beta=1e-6, gamma=0.0))
    assert slope == pytest.approx([-1 / 6, -1 / 6, -1 / 4, -1 / 6, -1 / 4], abs=1e-5)


def test_simnpo_margin_asks_for_more_forgetting() -> None:
    assert simnpo(LOSSES, gamma=1.0).item() > simnpo(LOSSES, gamma=0.0).item()
    assert gradient(lambda losses: simnpo(losses, gamma=1.0))[0] < gradient(simnpo)[0] < 0.0


# Refusals: sequence 0 has 2 and 1 (reference 3 and 1.5), sequence 1 has 2 (reference 1).
REFUSAL_ROWS = torch.tensor([0, 1, 0])
REFUSALS = numbers(2.0, 2.0, 1.0)
REFUSAL_REFERENCE = numbers(3.0, 1.0, 1.5)  # log(pi / pi_ref) = 1.5 and -1


def dpo(refusals: Tensor, losses: Tensor, beta: float = 0.5) -> Tensor:
    return forgetting.dpo(
        refusals, REFUSAL_REFERENCE, REFUSAL_ROWS, losses, REFERENCE, ROWS, 2, beta
    )


def test_dpo_by_hand() -> None:
    # Margins 1.5 - (-2) = 3.5 and -1 - 1 = -2; beta 1/2: (softplus(-1.75) + softplus(1)) / 2.
    expected = (softplus(-1.75) + softplus(1.0)) / 2.0
    assert dpo(REFUSALS, LOSSES).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.7367, abs=5e-5)


def test_dpo_at_the_reference_is_log_two() -> None:
    assert dpo(REFUSAL_REFERENCE, REFERENCE).item() == pytest.approx(math.log(2.0))


def test_dpo_learns_the_refusal_and_forgets_the_answer() -> None:
    # beta * sigmoid(-beta * margin) / 2 pairs, down on refusals and up on answers.
    won, lost = 0.25 * sigmoid(-1.75), 0.25 * sigmoid(1.0)
    learned = gradient(lambda refusals: dpo(refusals, LOSSES), REFUSALS)
    assert learned == pytest.approx([won, lost, won])
    forgotten = gradient(lambda losses: dpo(REFUSALS, losses))
    assert forgotten == pytest.approx([-won, -won, -lost, -won, -lost])


def test_dpo_leaves_out_half_pairs() -> None:
    # Row 2 has a refusal only; the pairs 0 and 1 are as in test_dpo_by_hand.
    loss = forgetting.dpo(
        torch.cat([REFUSALS, numbers(9.0)]),
        torch.cat([REFUSAL_REFERENCE, numbers(1.0)]),
        torch.cat([REFUSAL_ROWS, torch.tensor([2])]),
        LOSSES,
        REFERENCE,
        ROWS,
        3,
        0.5,
    )
    assert loss.item() == pytest.approx(dpo(REFUSALS, LOSSES).item())


def test_sequences_without_tokens_are_left_out() -> None:
    # The same two sequences under the row numbers 1 and 3 of a batch of five.
    spread = torch.where(ROWS == 0, 1, 3)
    assert npo(LOSSES, rows=spread, n=5).item() == pytest.approx(npo(LOSSES).item())
    by_length = forgetting.simnpo(LOSSES, spread, 5, 0.5, 0.25)
    assert by_length.item() == pytest.approx(simnpo(LOSSES).item())


def test_nothing_to_forget_is_zero_with_a_gradient() -> None:
    none, rows = numbers(), torch.tensor([], dtype=torch.int64)
    for loss in (
        forgetting.gradient_ascent,
        lambda losses: forgetting.npo(losses, none, rows, 2, 0.5),
        lambda losses: forgetting.simnpo(losses, rows, 2, 0.5, 0.25),
        lambda losses: forgetting.dpo(losses, none, rows, none, none, rows, 2, 0.5),
    ):
        assert loss(none).item() == 0.0
        assert gradient(loss, none) == []


def test_parts_of_a_step_add_up_to_the_whole_step() -> None:
    first, second = ROWS == 0, ROWS == 1
    away, there = (LOSSES[first], LOSSES[second]), (REFERENCE[first], REFERENCE[second])
    rows = (ROWS[first], ROWS[second])
    tokens, sequences = torch.tensor(5.0), 2
    ascent = [forgetting.gradient_ascent(part, 2.5, tokens) for part in away]
    assert sum(ascent).item() == pytest.approx(-1.6)
    parts = [forgetting.npo(away[i], there[i], rows[i], 2, 0.5, sequences) for i in (0, 1)]
    assert sum(parts).item() == pytest.approx(npo(LOSSES).item())
    parts = [forgetting.simnpo(away[i], rows[i], 2, 0.5, 0.25, sequences) for i in (0, 1)]
    assert sum(parts).item() == pytest.approx(simnpo(LOSSES).item())
    halves = [i == REFUSAL_ROWS for i in (0, 1)]
    parts = [
        forgetting.dpo(
            REFUSALS[halves[i]],
            REFUSAL_REFERENCE[halves[i]],
            REFUSAL_ROWS[halves[i]],
            away[i],
            there[i],
            rows[i],
            2,
            0.5,
            sequences,
        )
        for i in (0, 1)
    ]
    assert sum(parts).item() == pytest.approx(dpo(REFUSALS, LOSSES).item())
