"""Whose turn it is: a queue that is fair between groups, not between their members.

    group 1   a b c d        ->   a x b c d
    group 2   x

Knows nothing of what waits in it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """First come, first served within a group; the groups take turns.

    Belongs to one thread at a time.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[Item]:
        for group in self._groups.values():
            yield from group

    def put(self, item: Item, group: Hashable) -> None:
        """Let an item wait behind those of its group."""
        self._groups.setdefault(group, deque()).append(item)

    def take(self) -> Item:
        """The item whose turn it is; its group's next turn comes after all others'."""
        group, waiting = self._groups.popitem(last=False)
        item = waiting.popleft()
        if waiting:
            self._groups[group] = waiting
        return item

    def drop(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out what nobody wants any more, wherever it waits."""
        dropped: list[Item] = []
        for group, waiting in list(self._groups.items()):
            left: deque[Item] = deque()
            for item in waiting:  # each is asked about once: the answer may change with time
                (dropped if unwanted(item) else left).append(item)
            if left:
                self._groups[group] = left
            else:
                del self._groups[group]
        return dropped
