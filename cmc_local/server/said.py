"""What one reply says, in order: thoughts, text, calls of tools, each as it comes.

Both newer protocols, OpenAI's responses and Anthropic's messages, name these parts one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from cmc_local.model.replies import Piece
from cmc_local.server.tools import CallReader

Kind = Literal["thinking", "text", "call"]


@dataclass(frozen=True, slots=True)
class Said:
    """A bit of one part."""

    kind: Kind
    text: str
    """Of thoughts or of the answer, or a bit of a call's arguments, which are JSON."""
    begins: bool
    """Whether a new part begins."""
    id: str = ""
    """Of a call that begins."""
    name: str = ""
    """The function that it calls."""


class SaidReader:
    """Reads the pieces of one reply."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the functions that it may call."""
        self._calls = CallReader(names) if names else None
        self._kind: Kind | None = None

    def read(self, piece: Piece) -> Iterator[Said]:
        """What a piece says."""
        if piece.thinking:
            yield self._said("thinking", piece.thinking)
        if self._calls is None:
            if piece.text:
                yield self._said("text", piece.text)
            return
        told = self._calls.read(piece.text, last=piece.finish_reason is not None)
        if "content" in told:
            yield self._said("text", told["content"])
        for call in told.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                self._kind = "call"
                text = function["arguments"]
                yield Said("call", text, begins=True, id=call["id"], name=function["name"])
            else:
                yield self._said("call", function["arguments"])

    def reason(self, last: Piece) -> Literal["stop", "length", "tool_calls"]:
        """Why the reply ended."""
        if self._calls is not None and self._calls.calls and last.finish_reason == "stop":
            return "tool_calls"
        return "length" if last.finish_reason == "length" else "stop"

    def _said(self, kind: Kind, text: str) -> Said:
        begins, self._kind = kind != self._kind, kind
        return Said(kind, text, begins)
