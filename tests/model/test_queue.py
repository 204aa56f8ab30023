"""A fair queue: groups take turns, members do not overtake each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cmc_local.model.queue import FairQueue, Ticket


def queue_of(*names: str) -> FairQueue:
    """Tickets that are known by their names, whose first letters are their groups."""
    made = FairQueue()
    for name in names:
        made.put(Named(name))
    return made


class Named(Ticket):
    def __init__(self, name: str) -> None:
        super().__init__(hear=lambda heard: None, group=name[0])
        self.name = name


def names(tickets: Iterable[Ticket]) -> list[str]:
    return [one.name for one in tickets if isinstance(one, Named)]


def emptied(queue: FairQueue) -> list[str]:
    return names([queue.pop() for _ in range(len(queue))])


def test_one_item_does_not_wait_for_a_hundred() -> None:
    many = [f"a{i}" for i in range(100)]
    assert emptied(queue_of(*many, "b"))[:3] == ["a0", "b", "a1"]


def test_three_groups_take_turns() -> None:
    assert emptied(queue_of("a1", "a2", "a3", "b1", "c1", "c2")) == [
        *("a1", "b1", "c1"),
        *("a2", "c2"),
        "a3",
    ]


def test_dropped_items_are_told_and_the_others_keep_their_turns() -> None:
    queue = queue_of("a1", "a2", "b1", "c1")
    assert names(queue.drop(lambda one: names([one])[0] in ("a1", "b1"))) == ["a1", "b1"]
    assert names(queue) == ["a2", "c1"]
    assert emptied(queue) == ["a2", "c1"]
    assert len(queue) == 0


def test_whoever_is_dropped_is_told_even_if_the_answer_changes_with_time() -> None:
    queue = queue_of("a1", "a2", "b1")
    answers = iter((False, False, False, True, True, True))  # more than there are items
    dropped = queue.drop(lambda one: next(answers))
    assert sorted(names([*dropped, *queue])) == ["a1", "a2", "b1"]


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_nobody_is_overtaken_by_more_than_one_of_each_group(groups: list[str]) -> None:
    items = [f"{group}{i}" for i, group in enumerate(groups)]
    left = emptied(queue_of(*items))
    assert sorted(left) == sorted(items)
    for group in "abc":
        own = [item for item in left if item[0] == group]
        assert own == [item for item in items if item[0] == group]
        for first, second in pairwise(own):
            between = left[left.index(first) + 1 : left.index(second)]
            assert len({item[0] for item in between}) == len(between)
