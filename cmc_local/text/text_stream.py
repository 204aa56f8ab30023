"""Bytes of a reply -> text that may be shown: whole characters only, and never a stop text.

Knows neither tokens nor models.

    >>> stream = TextStream(stop=("###",))
    >>> stream.push(b"caf\\xc3"), stream.push(b"\\xa9 #"), stream.push(b"# more"), stream.finish()
    ('caf', 'é ', '## more', '')
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Releases text once no later byte can change it or make it part of a stop text.

    Bytes that are no UTF-8 become U+FFFD; a character that the last byte cuts off is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped_by: str | None = None
        """The stop text that has come; what follows it is not released."""

    @property
    def holds(self) -> bool:
        """Whether some of what came in is not released yet."""
        return bool(self._held or self._decoder.getstate()[0])

    def push(self, data: bytes) -> str:
        """The text that `data` sets free; "" while it is held back, and after a stop text."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decoder.decode(data)
        found = [
            (at + len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0
        ]
        if found:  # the one that was whole first, however the bytes came in
            _, at, self.stopped_by = min(found)
            released, self._held = self._held[:at], ""
            return released
        keep = self._possible_stop()
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(released) :]
        return released

    def finish(self) -> str:
        """What was held back for a stop text that did not come."""
        released, self._held = self._held, ""
        return released

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that some stop text begins with."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
