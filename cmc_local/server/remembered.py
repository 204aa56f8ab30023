"""The last responses, so that a later one can go on from them. Knows names and messages only."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from cmc_local.server.errors import Refusal, quoted

Message = dict[str, Any]


@dataclass
class Remembered:
    """The last responses, and the conversations that they end."""

    most: int
    """How many are kept."""
    _kept: OrderedDict[str, tuple[dict[str, Any], list[Message]]] = field(
        default_factory=OrderedDict
    )

    def keep(self, response: dict[str, Any], messages: list[Message]) -> None:
        """Keep one, with its conversation up to the answer; the oldest goes."""
        self._kept[response["id"]] = response, messages
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)

    def find(self, name: str, param: str) -> tuple[dict[str, Any], list[Message]]:
        """A response and its conversation. Raises Refusal (404)."""
        if name not in self._kept:
            told = f"there is no response {quoted(name)} here (any more): send the whole input"
            raise Refusal(404, told, param=param, code="response_not_found")
        return self._kept[name]

    def drop(self, name: str) -> None:
        """Forget one. Raises Refusal (404)."""
        self.find(name, "response_id")
        del self._kept[name]
