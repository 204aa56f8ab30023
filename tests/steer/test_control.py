"""Adding mapped shifts, against sums written out and a slow reference in Python's own floats."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.settings import Control, Unmapped
from cmc_local.steer.control import MappedShift, Offer, Shift, add_shifts
from cmc_local.text.token_map import TokenMap


def mapped(ids: Sequence[int], delta_size: int, unmapped: Unmapped = "neutral") -> MappedShift:
    found = TokenMap(np.array(ids, np.int32), np.zeros(len(ids), np.uint8), delta_size)
    return MappedShift(found, Control(unmapped=unmapped))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def offer(**shift_of: float) -> Offer:
    """offer(t2=0.5): base token 2 is offered the shift 0.5."""
    ids = np.array([int(name[1:]) for name in shift_of], np.intp)
    return Offer(ids, floats(*shift_of.values()))


def added(
    one: MappedShift, base: np.ndarray, row: np.ndarray, alpha: float, *offers: Offer
) -> np.ndarray:
    """What one adapter adds to `base`, which stays as it is."""
    moved = base.copy()
    add_shifts(moved, [Shift(one, row, alpha, offers)])
    return moved - base


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


# --- by hand ---------------------------------------------------------------------------------


def test_the_docstrings_example() -> None:
    base = floats(0, 0, 0)
    add_shifts(base, [Shift(mapped([0, 1, -1], 2), floats(math.log(3), 0), 1.0)])
    # fill = ln(3 + 1) - ln(1 + 1) = ln 2
    np.testing.assert_allclose(base, [math.log(3), 0, math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(probabilities(base), [3 / 6, 1 / 6, 2 / 6], rtol=1e-6)


def test_zero_leaves_unmapped_tokens_as_they_are() -> None:
    one = mapped([0, 1, -1], 2, "zero")
    assert added(one, floats(0, 0, 0), floats(4, 2), 0.5).tolist() == [2, 1, 0]


def test_two_base_tokens_may_share_a_delta_token() -> None:
    assert added(mapped([1, 1, 0], 2), floats(0, 0, 0), floats(4, 2), 1.0).tolist() == [2, 2, 4]


def test_two_adapters_are_each_filled_against_the_base_alone() -> None:
    base = floats(0, 0, 0)
    one, other = mapped([0, 1, -1], 2), mapped([0, -1, -1], 1)
    ln3, ln2 = math.log(3), math.log(2)
    add_shifts(base, [Shift(one, floats(ln3, 0), 1.0), Shift(other, floats(ln2), 1.0)])
    # one fills the third with ln 2, the other the second and third with ln 2 - ln 1
    np.testing.assert_allclose(base, [ln3 + ln2, ln2, ln2 + ln2], rtol=1e-6)


def test_one_map_may_serve_several_adapters_of_a_row() -> None:
    base, one = floats(0, 0, 0), mapped([0, 1, -1], 2)
    add_shifts(base, [Shift(one, floats(math.log(n), 0), 1.0) for n in (3, 7, 15)])
    # the fills are ln 2, ln 4 and ln 8
    np.testing.assert_allclose(base, [math.log(3 * 7 * 15), 0, math.log(64)], rtol=1e-6)


def test_without_an_adapter_or_with_alpha_zero_no_bit_changes() -> None:
    base = np.array([0x80000000, 0x7FC00123, 0xFF800000, 1], np.uint32)  # -0, a NaN, -inf, tiny
    before, row = base.copy(), base.view(np.float32)
    add_shifts(row, [])
    for unmapped in ("neutral", "zero"):
        one = mapped([0, 0, -1, 0], 1, unmapped)  # type: ignore[arg-type]
        add_shifts(row, [Shift(one, floats(math.inf), 0.0, [offer(t0=2.0)])] * 2)
    assert base.tolist() == before.tolist()


@pytest.mark.parametrize("constant", [-50.0, -5.0, 5.0, 50.0])
def test_a_constant_in_the_deltas_logits_changes_no_probability(constant: float) -> None:
    base, shift = floats(1, -2, 0.5, 3), floats(0.25, -1)
    one = mapped([0, 1, -1, -1], 2)
    plain = probabilities(base + added(one, base, shift, 1.0))
    moved = probabilities(base + added(one, base, shift + np.float32(constant), 1.0))
    np.testing.assert_allclose(moved, plain, rtol=2e-5)


def test_unmapped_tokens_keep_their_total_probability() -> None:
    base = floats(1, -2, 0.5, 3)
    moved = base + added(mapped([0, 1, -1, -1], 2), base, floats(4, -7), 0.7)
    before, after = probabilities(base), probabilities(moved)
    assert after[2:].sum() == pytest.approx(before[2:].sum(), rel=1e-5)


@pytest.mark.parametrize("level", [-400.0, -80.0, -50.0, 50.0, 80.0, 400.0])
def test_logits_far_apart_do_not_overflow_or_vanish(level: float) -> None:
    base = floats(level, level - 10, 500)  # the unmapped token towers over both others
    row = added(mapped([0, 1, -1], 2), base, floats(3, 3), 1.0)
    np.testing.assert_allclose(row, [3, 3, 3], rtol=1e-4)


def test_no_mapped_token_at_all_adds_nothing() -> None:
    assert added(mapped([-1, -1], 3), floats(1, 2), floats(1, 2, 3), 1.0).tolist() == [0, 0]


def test_logits_of_minus_infinity_stay_so_and_take_no_part_in_the_fill() -> None:
    base = floats(0, -math.inf, 0, -math.inf)
    add_shifts(base, [Shift(mapped([0, 1, -1, -1], 2), floats(2, 9), 1.0)])
    np.testing.assert_allclose(base, [2, -math.inf, 2, -math.inf], rtol=1e-6)
    nowhere = floats(-math.inf, -math.inf, 1)
    add_shifts(nowhere, [Shift(mapped([0, 1, -1], 2), floats(2, 9), 1.0)])
    assert nowhere.tolist() == [-math.inf, -math.inf, 1]


def test_a_larger_offer_replaces_the_mapped_shift_and_a_smaller_one_does_not() -> None:
    row = added(mapped([0, 1, 0], 2), floats(0, 0, 0), floats(1, 2), 2.0, offer(t0=3.0, t1=0.5))
    assert row.tolist() == [6, 4, 2]


def test_the_larger_shift_counts_under_a_negative_alpha_too() -> None:
    row = added(mapped([0, 1, 0], 2), floats(0, 0, 0), floats(1, 2), -2.0, offer(t0=3.0, t1=0.5))
    assert row.tolist() == [-6, -4, -2]


def test_an_offer_counts_from_the_fill_of_the_tokens_that_are_offered_nothing() -> None:
    one, base = mapped([0, 1, -1, -1], 2), floats(0, 0, 0, 0)
    for steps in (0, 1, 2):
        given = replace(offer(t2=1.0), steps=steps)
        fill = math.log(2)  # ln(3 + 1) - ln(1 + 1)
        row = added(one, base, floats(math.log(3), 0), 1.0, given)
        np.testing.assert_allclose(row, [math.log(3), 0, 1 + steps * fill, fill], rtol=1e-6)


def test_a_constant_in_all_rows_of_a_delta_changes_no_probability() -> None:
    one, base = mapped([0, 1, 0, -1], 2), floats(0.5, -1, 2, 0)
    for steps in (1, 2, 3):
        for constant in (0.0, 7.0):
            # s[d] - s[t1] - ... - s[tk]: all but one of k + 1 constants are left
            value = 2.0 + constant - steps * constant
            given = Offer(np.array([0, 3]), floats(value, value), steps)
            row = base.copy()
            add_shifts(row, [Shift(one, floats(1, 3) + np.float32(constant), 1.0, [given])])
            if constant == 0:
                expected = probabilities(row)
        np.testing.assert_allclose(probabilities(row), expected, rtol=1e-5)


def test_an_offer_is_what_makes_two_words_as_likely_as_the_delta_has_them() -> None:
    """The docstring of mid_token.py, by hand: "Maria" against "Mar" and another token."""
    p_ia, p_other, p_end = 0.3, 0.5, 0.2  # the base after "Mar"
    s_mar, s_maria, t_other, t_end = 1.0, 2.5, 0.7, -0.4  # the delta before "Mar", and after it
    after = p_other * math.exp(t_other) + p_end * math.exp(t_end)
    fill = math.log(after / (p_other + p_end))
    whole = p_ia * math.exp(s_maria)
    other = p_other * math.exp(s_mar + t_other - fill)
    base = np.log(floats(p_other, p_end, p_ia))
    given = replace(offer(t2=s_maria - s_mar), steps=1)
    row = base + added(mapped([0, 1, -1], 2), base, floats(t_other, t_end), 1.0, given)
    assert row[2] - row[0] == pytest.approx(math.log(whole / other), rel=1e-5)


def test_an_offer_where_unmapped_tokens_take_zero() -> None:
    one = mapped([0, -1, -1], 1, "zero")
    row = added(one, floats(0, 0, 0), floats(1), 1.0, offer(t1=2.0, t2=-2.0))
    assert row.tolist() == [1, 2, 0]


# --- against the slow reference --------------------------------------------------------------


@dataclass(frozen=True)
class Slow:
    """One adapter as the reference sees it."""

    ids: list[int]
    row: list[float]
    alpha: float
    unmapped: Unmapped = "neutral"
    offers: list[dict[int, float]] = field(default_factory=list)
    """Of no step back, one step, ..."""

    def added(self, base: Sequence[float]) -> list[float]:
        """The formula of the module's docstring, one token at a time."""
        if self.alpha == 0:
            return [0.0] * len(base)
        own = {v: self.alpha * self.row[i] for v, i in enumerate(self.ids) if i >= 0}
        away = {v for offered in self.offers for v in offered}
        sure = [v for v in own if v not in away]
        fill = 0.0
        if any(base[v] > -math.inf for v in sure):
            after = math.fsum(math.exp(base[v] + own[v]) for v in sure)
            fill = math.log(after) - math.log(math.fsum(math.exp(base[v]) for v in sure))
        lone = fill if self.unmapped == "neutral" else 0.0
        found = [own.get(v, lone) for v in range(len(base))]
        larger = max if self.alpha > 0 else min
        for steps, offered in enumerate(self.offers):
            for v, value in offered.items():
                found[v] = larger(found[v], self.alpha * value + steps * fill)
        return found

    def fast(self, one: MappedShift) -> Shift:
        offers = [
            replace(offer(**{f"t{v}": s for v, s in offered.items()}), steps=steps)
            for steps, offered in enumerate(self.offers)
        ]
        return Shift(one, floats(*self.row), self.alpha, offers)


numbers = st.floats(-12, 12, width=32)
strengths = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3)


@st.composite
def adapters(draw: st.DrawFn, base_size: int) -> list[tuple[Slow, MappedShift]]:
    """One to four adapters over at most two maps; those of one map may share its `MappedShift`."""
    pool = []
    for _ in range(draw(st.integers(1, 2))):
        delta_size = draw(st.integers(1, 6))
        ids = st.lists(
            st.integers(draw(st.sampled_from([-1, 0])), delta_size - 1),
            min_size=base_size,
            max_size=base_size,
        )
        unmapped: Unmapped = draw(st.sampled_from(["neutral", "zero"]))
        found = draw(ids)
        pool.append((found, delta_size, unmapped, mapped(found, delta_size, unmapped)))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        ids_, delta_size, unmapped, shared = draw(st.sampled_from(pool))
        row = draw(st.lists(numbers, min_size=delta_size, max_size=delta_size))
        offered = st.dictionaries(st.integers(0, base_size - 1), numbers, min_size=1, max_size=4)
        offers = draw(st.lists(offered, max_size=3))
        one = shared if draw(st.booleans()) else mapped(ids_, delta_size, unmapped)
        made.append((Slow(ids_, row, draw(strengths), unmapped, offers), one))
    return made


@given(data=st.data(), base_size=st.integers(1, 9))
def test_any_adapters_together_equal_the_slow_reference(
    data: st.DataObject, base_size: int
) -> None:
    logits = st.one_of(numbers, numbers, numbers, st.just(-math.inf))
    base = data.draw(st.lists(logits, min_size=base_size, max_size=base_size))
    chosen = data.draw(adapters(base_size))
    row = floats(*base)
    add_shifts(row, [slow.fast(one) for slow, one in chosen])
    expected = [
        before + math.fsum(parts)
        for before, *parts in zip(base, *[slow.added(base) for slow, _ in chosen], strict=True)
    ]
    np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alone", ["neutral", "zero"])
def test_a_long_row_is_as_exact_as_a_short_one(alone: Unmapped) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(-1, 3_000, 50_000).tolist()
    base, row = rng.normal(0, 4, 50_000), rng.normal(0, 3, 3_000)
    slow = Slow(ids, row.astype(np.float32).tolist(), 0.8, alone)
    moved = base.astype(np.float32)
    expected = np.array(slow.added(moved.tolist())) + moved
    add_shifts(moved, [slow.fast(mapped(ids, 3_000, alone))])
    np.testing.assert_allclose(moved, expected, rtol=0, atol=4e-6)


# --- sharing and memory ----------------------------------------------------------------------


def test_those_of_the_same_map_and_control_share() -> None:
    one = mapped([0, 1, -1], 2)
    assert one.shares(mapped([0, 1, -1], 2))
    assert not one.shares(mapped([0, 1, -1], 2, "zero"))
    assert not one.shares(mapped([1, 0, -1], 2))
    # "none" points at 2 and at 3 here, and a token 2 is no "none"
    assert not one.shares(mapped([0, 1, -1], 3))
    assert not one.shares(mapped([0, 1, 2], 3))


def test_adapters_that_share_go_through_one_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = mapped([0, 1, 1], 2), mapped([0, 1, 1], 2)
    apart = mapped([1, 0, 0], 2)
    gathers = []
    take = np.take
    monkeypatch.setattr(np, "take", lambda *a, **k: gathers.append(1) or take(*a, **k))
    base = floats(0, 0, 0)
    parts = [(one, 1.0), (apart, 1.0), (other, 2.0), (one, -0.5)]
    add_shifts(base, [Shift(m, floats(1, 4), alpha) for m, alpha in parts])
    assert base.tolist() == [2.5 + 4, 10 + 1, 10 + 1]
    assert len(gathers) == 2


@pytest.mark.parametrize("unmapped", ["neutral", "zero"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_allocates_nothing_as_long_as_a_vocabulary(unmapped: Unmapped, count: int) -> None:
    base_size, delta_size = 40_000, 20_000
    rng = np.random.default_rng(0)
    base = rng.normal(size=base_size).astype(np.float32)
    row = rng.normal(size=delta_size).astype(np.float32)
    ids = rng.integers(-1, delta_size, base_size)
    ids[::2] = -1  # half of the tokens unmapped: as many must not be allocated either
    ones = [mapped(ids.tolist(), delta_size, unmapped) for _ in range(count)]
    some = Offer(np.arange(50), np.ones(50, np.float32))
    plain = [Shift(one, row, 0.5) for one in ones]
    offered = [Shift(one, row, 0.5, [some]) for one in ones]
    for shifts in (plain, offered):
        add_shifts(base, shifts)
        tracemalloc.start()
        try:
            add_shifts(base, shifts)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < delta_size  # bytes: less than one byte a token
