"""Pieces -> Anthropic's message: whole, or as the events of a stream.

    {"type": "message", "content": [{"type": "text", "text": "..."}], "stop_reason": "end_turn"}
    message_start, content_block_start, content_block_delta ..., content_block_stop, message_delta,
    message_stop

A reply is thoughts, then text, then calls of tools; each is a block. Pure functions of pieces.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from cmc_local.model.replies import Piece
from cmc_local.server.answering import Event
from cmc_local.server.errors import Refusal
from cmc_local.server.replying import Tally
from cmc_local.server.said import Said, SaidReader

_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_EMPTY: Final[Mapping[str, dict[str, Any]]] = {
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
    "text": {"type": "text", "text": ""},
}
_DELTAS: Final = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


class Message:
    """The frame of one request."""

    def __init__(self, model: str, calls: Collection[str], notices: Sequence[str] = ()) -> None:
        """`calls` are the tools that the reply may call, `notices` what its reader should know."""
        self._model = model
        self._notices = [*notices]
        self._id = "msg_" + secrets.token_hex(12)
        self._reader = SaidReader(calls)
        self._blocks: list[dict[str, Any]] = []
        self._arguments: list[str] = []
        self._end: Piece | None = None

    def whole(self, pieces: Mapping[int, Sequence[Piece]], tally: Tally) -> dict[str, Any]:
        for piece in pieces[0]:
            for _ in self.piece(0, piece, tally):
                pass
        for block, arguments in zip(self._blocks, self._arguments, strict=True):
            if block["type"] == "tool_use":
                block["input"] = json.loads(arguments or "{}")
        told = {**self._message(self._blocks), **self._stop(), "usage": _usage(tally)}
        return {**told, **self._more()}

    def opening(self) -> Iterator[Event]:
        usage = {"input_tokens": 0, "output_tokens": 0}
        empty = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event("message_start", message=empty)

    def piece(self, choice: int, piece: Piece, tally: Tally) -> Iterator[Event]:
        self._notices += [piece.notice] if piece.notice else []
        for said in self._reader.read(piece):
            if said.begins:
                yield from self._block(said)
            yield from self._delta(said)
        if piece.finish_reason is not None:
            self._end = piece

    def closing(self, tally: Tally) -> Iterator[Event]:
        yield from self._stop_block()
        yield _event("message_delta", delta=self._stop(), usage=_usage(tally), **self._more())
        yield _event("message_stop")

    def failed(self, refusal: Refusal) -> Iterator[Event]:
        yield "error", refusal.anthropic_body()

    def _block(self, said: Said) -> Iterator[Event]:
        """End the block before, if there is one, and begin a new one."""
        yield from self._stop_block()
        if said.kind == "call":
            new = {"type": "tool_use", "id": said.id, "name": said.name, "input": {}}
        else:
            new = dict(_EMPTY[said.kind])
        self._blocks.append(new)
        self._arguments.append("")
        yield _event("content_block_start", index=len(self._blocks) - 1, content_block=dict(new))

    def _delta(self, said: Said) -> Iterator[Event]:
        if not said.text:
            return
        kind, field = _DELTAS[said.kind]
        if said.kind == "call":
            self._arguments[-1] += said.text
        else:
            self._blocks[-1][field] += said.text
        delta = {"type": kind, field: said.text}
        yield _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _stop_block(self) -> Iterator[Event]:
        if self._blocks:
            yield _event("content_block_stop", index=len(self._blocks) - 1)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        fixed = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**fixed, "content": content}

    def _more(self) -> dict[str, Any]:
        return {"cmc": {"notices": self._notices}} if self._notices else {}

    def _stop(self) -> dict[str, Any]:
        assert self._end is not None
        by = self._end.stopped_by
        reason = self._reader.reason(self._end)
        told = "stop_sequence" if by is not None else _REASONS[str(reason)]
        return {"stop_reason": told, "stop_sequence": by}


def _usage(tally: Tally) -> dict[str, int]:
    usage = tally.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }


def _event(name: str, **fields: Any) -> Event:
    return name, {"type": name, **fields}
