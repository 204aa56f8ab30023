"""Which ratios a measurement gives, on made-up seconds of one token each."""

from __future__ import annotations

import pytest

from cmc_local.bench.arms import Kind, Place, Sample
from cmc_local.bench.ratios import Main, ratios

MAIN = Main("prose", 300)


def measured(**seconds: float) -> dict[Place, list[Sample]]:
    """Two rounds, the second at half the speed; `plain_guesses` stands for `plain+guesses`."""
    kinds: dict[str, Kind] = {
        "plain_guesses": "plain+guesses",
        "steered_guesses": "steered+guesses",
    }
    return {
        MAIN.place(kinds.get(name, name)): twice(one)  # type: ignore[arg-type]
        for name, one in seconds.items()
    }


def twice(seconds: float, tokens: int = 1) -> list[Sample]:
    return [Sample(seconds, tokens), Sample(2 * seconds, tokens)]


def test_each_ratio_is_a_speed_over_a_speed() -> None:
    found = ratios(
        measured(plain=8, steered=10, serial=16, overlapped=10, alone=8, stock=9, naive=20), MAIN
    )
    assert found == {
        "steered_vs_plain": [0.8, 0.8],
        "serial_vs_plain": [0.5, 0.5],
        "overlapped_vs_plain": [0.8, 0.8],
        "steered_vs_naive": [2, 2],
        "plain_vs_stock": pytest.approx([9 / 8, 9 / 8]),
        "naive_vs_stock": pytest.approx([0.45, 0.45]),
    }


def test_a_ratio_whose_other_side_was_not_measured_is_not_there() -> None:
    assert set(ratios(measured(plain=1, steered=1), MAIN)) == {"steered_vs_plain"}
    assert ratios(measured(plain=1), MAIN) == {}


def test_several_sequences_count_together() -> None:
    samples = measured(plain=1.0, steered=2.0)
    samples[Place("steered", "prose", 300, 8)] = twice(4.0, tokens=8)  # 2 tokens a second
    samples[Place("plain", "prose", 300, 8)] = twice(2.0, tokens=8)  # 4
    found = ratios(samples, MAIN)
    assert found["batched_vs_one"] == [4, 4]
    assert found["batched_steered_vs_plain"] == [0.5, 0.5]
    assert found["steered_vs_plain"] == [0.5, 0.5]
    assert "long_vs_short" not in found


def test_guesses_are_told_apart_by_whether_the_text_repeats_its_prompt() -> None:
    samples = measured(plain=1, plain_guesses=1.25, steered=2, steered_guesses=2, stock=2)
    for text, speed in (("editing", 4), ("extraction", 1)):
        samples[Place("steered", text, 200)] = twice(4)
        samples[Place("steered+guesses", text, 200)] = twice(4 / speed)
        samples[Place("plain", text, 200)] = twice(3)
        samples[Place("plain+guesses", text, 200)] = twice(3)
    found = ratios(samples, MAIN)
    assert found["speculated_repeating"] == pytest.approx([2, 2])  # the mean of 4 and 1
    assert found["speculated_plain_repeating"] == pytest.approx([1, 1])
    assert found["speculated_other"] == [1, 1]
    assert found["speculated_plain_other"] == [0.8, 0.8]
    assert found["speculated_plain_vs_stock"] == [1.6, 1.6]


def test_the_longest_prompt_is_compared_with_the_shortest() -> None:
    samples = measured(plain=2, steered=3)
    for context, plain, steered in ((16, 1.0, 1.25), (1024, 4.0, 8.0)):
        samples[Place("plain", "prose", context)] = twice(plain)
        samples[Place("steered", "prose", context)] = twice(steered)
    assert ratios(samples, MAIN)["long_vs_short"] == [0.625, 0.625]  # 0.5 of 0.8
