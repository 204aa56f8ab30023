"""Arms in a process of their own: whose turn it is, what comes back, what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from cmc_local.bench.apart import Apart, ApartArm
from cmc_local.bench.arms import Arm, Place, Sample
from cmc_local.errors import UsageError

STOCK, NAIVE = Place("stock", "text", 3), Place("naive", "text", 3)
BROKEN, DEADLY = Place("plain", "broken", 3), Place("plain", "deadly", 3)


class Counting:
    """An arm that says in which process it ran, and how often."""

    def __init__(self, place: Place, seconds: float) -> None:
        self.place, self.turns, self.seconds = place, 0, seconds

    def run(self) -> Sample:
        if self.place == BROKEN:
            raise UsageError("the text is too short: give a longer one")
        if self.place == DEADLY:
            os._exit(7)
        self.turns += 1
        return Sample(self.seconds, self.turns, ((os.getpid(),),))


def counting(seconds: float) -> Callable[[Place], Arm]:
    return lambda place: Counting(place, seconds)


@pytest.fixture
def apart() -> Iterator[Apart]:
    one = Apart(counting, 0.5)
    yield one
    one.close()


def test_arms_of_one_process_keep_what_they_hold_from_turn_to_turn(apart: Apart) -> None:
    stock, naive = ApartArm(STOCK, apart), ApartArm(NAIVE, apart)
    first, other, second = stock.run(), naive.run(), stock.run()
    assert (first.tokens, other.tokens, second.tokens) == (1, 1, 2)
    assert first.seconds == 0.5
    assert first.emitted == other.emitted == second.emitted
    assert first.emitted != ((os.getpid(),),)


def test_what_goes_wrong_there_is_raised_here_and_the_next_turn_runs(apart: Apart) -> None:
    with pytest.raises(UsageError, match="give a longer one"):
        ApartArm(BROKEN, apart).run()
    assert ApartArm(STOCK, apart).run().tokens == 1


def test_a_process_that_ends_by_itself_is_an_error_and_not_a_wait(apart: Apart) -> None:
    with pytest.raises(RuntimeError, match=r"deadly .*code 7"):
        ApartArm(DEADLY, apart).run()


def test_closing_ends_the_process() -> None:
    one = Apart(counting, 0.5)
    one.run(STOCK)
    one.close()
    one.close()
    assert not one._process.is_alive()
