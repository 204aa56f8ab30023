"""Adding mapped shifts, against sums written out and a slow reference in Python's own floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.control import MappedShift, Offer, check_alpha
from cmc_local.errors import UsageError
from cmc_local.settings import Control, Unmapped
from cmc_local.token_map import TokenMap


def mapped(ids: Sequence[int], delta_size: int, unmapped: Unmapped = "neutral") -> MappedShift:
    found = TokenMap(np.array(ids, np.int32), np.zeros(len(ids), np.uint8), delta_size)
    return MappedShift(found, Control(unmapped=unmapped))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def offer(**shift_of: float) -> Offer:
    """offer(t2=0.5): base token 2 is offered the shift 0.5."""
    ids = np.array([int(name[1:]) for name in shift_of], np.intp)
    return Offer(ids, floats(*shift_of.values()))


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def slow_row(
    ids: Sequence[int],
    base: Sequence[float],
    shift: Sequence[float],
    alpha: float,
    *,
    unmapped: Unmapped = "neutral",
    offered: dict[int, float] | None = None,
) -> list[float]:
    """The formula of the module's docstring, one token at a time."""
    found = {v: shift[i] for v, i in enumerate(ids) if i >= 0}
    for v, value in (offered or {}).items():
        found[v] = max(found.get(v, -math.inf), value)
    fill = 0.0
    if unmapped == "neutral" and found:
        after = math.fsum(math.exp(base[v] + alpha * s) for v, s in found.items())
        before = math.fsum(math.exp(base[v]) for v in found)
        fill = math.log(after) - math.log(before)
    return [alpha * found[v] if v in found else fill for v in range(len(base))]


def test_the_docstrings_example() -> None:
    base = floats(0, 0, 0)
    row = mapped([0, 1, -1], 2).row(base, floats(math.log(3), 0), 1.0)
    # fill = ln(3 + 1) - ln(1 + 1) = ln 2
    np.testing.assert_allclose(row, [math.log(3), 0, math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(probabilities(base + row), [3 / 6, 1 / 6, 2 / 6], rtol=1e-6)


def test_zero_leaves_unmapped_tokens_as_they_are() -> None:
    row = mapped([0, 1, -1], 2, "zero").row(floats(0, 0, 0), floats(4, 2), 0.5)
    assert row.tolist() == [2, 1, 0]


def test_two_base_tokens_may_share_a_delta_token() -> None:
    row = mapped([1, 1, 0], 2).row(floats(0, 0, 0), floats(4, 2), 1.0)
    assert row.tolist() == [2, 2, 4]


def test_alpha_zero_is_all_zeros_whatever_the_shift() -> None:
    row = mapped([0, -1], 1).row(floats(1, 2), floats(math.inf), 0.0)
    assert row.tolist() == [0, 0]


@pytest.mark.parametrize("constant", [-50.0, -5.0, 5.0, 50.0])
def test_a_constant_in_the_deltas_logits_changes_no_probability(constant: float) -> None:
    base, shift = floats(1, -2, 0.5, 3), floats(0.25, -1)
    one = mapped([0, 1, -1, -1], 2)
    plain = probabilities(base + one.row(base, shift, 1.0))
    moved = probabilities(base + one.row(base, shift + np.float32(constant), 1.0))
    np.testing.assert_allclose(moved, plain, rtol=2e-5)


def test_unmapped_tokens_keep_their_total_probability() -> None:
    base = floats(1, -2, 0.5, 3)
    row = mapped([0, 1, -1, -1], 2).row(base, floats(4, -7), 0.7)
    before, after = probabilities(base), probabilities(base + row)
    assert after[2:].sum() == pytest.approx(before[2:].sum(), rel=1e-5)


def test_logits_far_apart_do_not_overflow_or_vanish() -> None:
    base = floats(-400, -410, 500)  # the unmapped token towers over both others
    row = mapped([0, 1, -1], 2).row(base, floats(3, 3), 1.0)
    np.testing.assert_allclose(row, [3, 3, 3], rtol=1e-4)


def test_no_mapped_token_at_all_adds_nothing() -> None:
    assert mapped([-1, -1], 3).row(floats(1, 2), floats(1, 2, 3), 1.0).tolist() == [0, 0]


def test_base_logits_are_only_read() -> None:
    base = floats(1, 2, 3)
    base.flags.writeable = False
    mapped([0, 1, -1], 2).row(base, floats(1, 2), 1.0)
    assert base.tolist() == [1, 2, 3]


def test_a_larger_offer_replaces_the_mapped_shift_and_a_smaller_one_does_not() -> None:
    one = mapped([0, 1, 0], 2)
    row = one.row(floats(0, 0, 0), floats(1, 2), 2.0, [offer(t0=3.0, t1=0.5)])
    assert row.tolist() == [6, 4, 2]


def test_the_larger_shift_counts_under_a_negative_alpha_too() -> None:
    one = mapped([0, 1, 0], 2)
    row = one.row(floats(0, 0, 0), floats(1, 2), -2.0, [offer(t0=3.0, t1=0.5)])
    assert row.tolist() == [-6, -4, -2]


@pytest.mark.parametrize("alpha", [1.0, -1.0])
def test_an_offer_makes_an_unmapped_token_mapped_for_that_step(alpha: float) -> None:
    one, base = mapped([0, -1, -1], 1), floats(0, 0, 0)
    row = one.row(base, floats(0), alpha, [offer(t1=math.log(3))])
    # fill = ln(1 + 3^alpha) - ln(1 + 1)
    fill = math.log(1 + 3**alpha) - math.log(2)
    np.testing.assert_allclose(row, [0, alpha * math.log(3), fill], rtol=1e-6)
    again = one.row(base, floats(0), alpha)
    np.testing.assert_allclose(again, [0, 0, 0], atol=1e-7)


def test_an_offer_where_unmapped_tokens_take_zero() -> None:
    one = mapped([0, -1, -1], 1, "zero")
    assert one.row(floats(0, 0, 0), floats(1), 1.0, [offer(t1=-2.0)]).tolist() == [1, -2, 0]


numbers = st.floats(-12, 12, width=32)


@given(
    data=st.data(),
    delta_size=st.integers(1, 6),
    base_size=st.integers(1, 9),
    alpha=st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3),
    unmapped=st.sampled_from(["neutral", "zero"]),
)
def test_rows_equal_the_slow_reference(
    data: st.DataObject, delta_size: int, base_size: int, alpha: float, unmapped: Unmapped
) -> None:
    def row_of(size: int) -> list[float]:
        return data.draw(st.lists(numbers, min_size=size, max_size=size))

    ids = data.draw(
        st.lists(st.integers(-1, delta_size - 1), min_size=base_size, max_size=base_size)
    )
    base, shift = row_of(base_size), row_of(delta_size)
    offered = data.draw(st.dictionaries(st.integers(0, base_size - 1), numbers, max_size=4))
    offers = [offer(**{f"t{v}": s for v, s in offered.items()})] if offered else []
    row = mapped(ids, delta_size, unmapped).row(floats(*base), floats(*shift), alpha, offers)
    expected = slow_row(ids, base, shift, alpha, unmapped=unmapped, offered=offered)
    np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_no_buffer_grows_or_moves() -> None:
    one = mapped([0, -1], 1)
    first = one.row(floats(0, 0), floats(1), 1.0)
    assert one.row(floats(0, 0), floats(2), 1.0) is first


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_alpha_that_is_no_number_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha must be a number"):
        check_alpha(alpha)


def test_an_alpha_below_zero_is_allowed() -> None:
    assert check_alpha(-0.5) == -0.5
