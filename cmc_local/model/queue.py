"""Who waits for a slot, and whose turn it is: a queue that is fair between groups.

group 1   a b c d        ->   a x b c d
group 2   x
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from time import monotonic

from cmc_local.model.batching import Sampler
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Request

Heard = Piece | Exception


@dataclass(eq=False)
class Ticket:
    """One ask of a `SharedModel`, from the moment it was made until its last piece is heard."""

    hear: Callable[[Heard], None]
    group: Hashable = None
    """Whose it is; None makes it a group of its own."""
    since: float = field(default_factory=monotonic)
    request: Request | None = None
    """None until it is prepared."""
    sampler: Sampler | None = None
    queued: bool = False
    cancelled: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        if self.group is None:
            self.group = object()

    def uses(self, adapter: str) -> bool:
        """Whether an adapter of this name acts on it."""
        return self.request is not None and any(adapter == one.name for one in self.request.active)

    def close(self) -> None:
        """Free its sampler; more than once is fine."""
        if self.sampler is not None:
            self.sampler.close()

    def tell(self, heard: Heard) -> None:
        """Let whoever asked hear it; who cannot (an event loop that has ended) wants no more."""
        try:
            self.hear(heard)
        except Exception:
            self.cancelled = True

    def end(self, last: Heard) -> None:
        """The last that is heard of it."""
        self.over = True
        self.tell(last)


class FairQueue:
    """First come, first served within a group of tickets; the groups take turns.

    Belongs to one thread at a time.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[Ticket]:
        for group in self._groups.values():
            yield from group

    def put(self, ticket: Ticket) -> None:
        """Let a ticket wait behind those of its group."""
        self._groups.setdefault(ticket.group, deque()).append(ticket)

    def pop(self) -> Ticket:
        """The ticket whose turn it is; its group's next turn comes after all others'."""
        group, waiting = self._groups.popitem(last=False)
        ticket = waiting.popleft()
        if waiting:
            self._groups[group] = waiting
        return ticket

    def drop(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Remove what nobody wants any more, wherever it waits; what was removed."""
        dropped: list[Ticket] = []
        for group, waiting in list(self._groups.items()):
            left: deque[Ticket] = deque()
            for ticket in waiting:  # each is asked about once: the answer may change with time
                (dropped if unwanted(ticket) else left).append(ticket)
            if left:
                self._groups[group] = left
            else:
                del self._groups[group]
        return dropped
