"""The faster of several ways, found by taking turns."""

from __future__ import annotations

from cmc_local.engine.pacing import SETTLED_FOR, TRIALS, Pace


def walk(pace: Pace[str], steps: int, seconds: dict[str, float]) -> list[str]:
    taken = []
    for _ in range(steps):
        taken.append(pace.take())
        pace.took(taken[-1], seconds[taken[-1]])
    return taken


def test_ways_take_turns_until_one_is_found_faster() -> None:
    pace = Pace("ab")
    assert pace.settled is None
    assert "".join(walk(pace, 2 * TRIALS + 3, {"a": 2.0, "b": 1.0})) == "ab" * TRIALS + "bbb"
    assert pace.settled == "b"


def test_the_first_step_of_each_way_and_a_single_outlier_do_not_count() -> None:
    pace = Pace("ab")
    times = {
        "a": [9.0, 1.0, 1.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0],
        "b": [0.1, *[2.0] * (TRIALS - 1)],
    }
    while pace.settled is None:
        way = pace.take()
        pace.took(way, times[way].pop(0))
    assert pace.settled == "a"


def test_after_a_while_the_others_are_tried_again() -> None:
    pace = Pace("ab")
    walk(pace, 2 * TRIALS, {"a": 1.0, "b": 2.0})
    assert set(walk(pace, SETTLED_FOR, {"a": 3.0, "b": 2.0})) == {"a"}
    walk(pace, 2 * TRIALS, {"a": 3.0, "b": 2.0})
    assert pace.settled == "b"


def test_the_first_way_stays_unless_another_is_clearly_faster() -> None:
    for other, found in ((0.99, "a"), (0.97, "b")):
        pace = Pace("ab")
        walk(pace, 2 * TRIALS, {"a": 1.0, "b": other})
        assert pace.settled == found


def test_one_way_needs_no_trial() -> None:
    pace = Pace("a")
    assert pace.settled == "a"
    assert walk(pace, SETTLED_FOR + 1, {"a": 1.0}) == ["a"] * (SETTLED_FOR + 1)
