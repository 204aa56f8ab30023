"""Pieces -> OpenAI's response: whole, or as the events of a stream.

    {"object": "response", "status": "completed", "output": [{"type": "message", ...}], ...}
    response.created, response.output_item.added, response.output_text.delta ..., .done,
    response.output_item.done, response.completed

Thoughts, the text and each call of a tool are one output item each. Pure functions of pieces.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from cmc_local.model.replies import Piece
from cmc_local.server.answering import Event
from cmc_local.server.errors import Refusal
from cmc_local.server.replying import Tally
from cmc_local.server.said import Said, SaidReader

Item = dict[str, Any]
_DELTAS: Final = {
    "thinking": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


class ResponseFrame:
    """The frame of one request."""

    def __init__(
        self,
        told: Mapping[str, Any],
        calls: Collection[str],
        notices: Sequence[str],
        keep: Callable[[dict[str, Any], dict[str, Any]], None],
    ) -> None:
        """`told` is repeated from the request, `calls` are the tools that the reply may call.

        `keep` gets a response that is whole, and the answer as a message of a chat.
        """
        self._fixed = {
            "id": "resp_" + secrets.token_hex(16),
            "object": "response",
            "created_at": int(time.time()),
            **told,
        }
        self._keep = keep
        self._notices = [*notices]
        self._reader = SaidReader(calls)
        self._items: list[Item] = []
        self._kind = ""
        self._number = 0

    def whole(self, pieces: Mapping[int, Sequence[Piece]], tally: Tally) -> dict[str, Any]:
        for piece in pieces[0]:
            for _ in self.piece(0, piece, tally):
                pass
        for _ in self._item_done():
            pass
        return self._ended(pieces[0][-1], tally)

    def opening(self) -> Iterator[Event]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def piece(self, choice: int, piece: Piece, tally: Tally) -> Iterator[Event]:
        self._notices += [piece.notice] if piece.notice else []
        for said in self._reader.read(piece):
            if said.begins:
                yield from self._item_done()
                yield from self._item_added(said)
            if said.text:
                yield from self._delta(said)
        self._last = piece

    def closing(self, tally: Tally) -> Iterator[Event]:
        yield from self._item_done()
        response = self._ended(self._last, tally)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, refusal: Refusal) -> Iterator[Event]:
        error = {"code": refusal.code or "server_error", "message": str(refusal)}
        yield self._event("response.failed", response={**self._response("failed"), "error": error})

    # --- output items --------------------------------------------------------------------------

    def _item_added(self, said: Said) -> Iterator[Event]:
        self._kind = said.kind
        item = _new_item(said)
        self._items.append(item)
        yield self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=_open(item)
        )
        if said.kind == "text":
            part = {**item["content"][0], "text": ""}
            yield self._about("response.content_part.added", part=part)

    def _delta(self, said: Said) -> Iterator[Event]:
        item = self._items[-1]
        if said.kind == "call":
            item["arguments"] += said.text
        else:
            item["content"][0]["text"] += said.text
        more: dict[str, Any] = {"logprobs": []} if said.kind == "text" else {}
        yield self._about(f"{_DELTAS[said.kind]}.delta", delta=said.text, **more)

    def _item_done(self) -> Iterator[Event]:
        """The events by which the item under way ends."""
        if not self._kind:
            return
        item, name = self._items[-1], f"{_DELTAS[self._kind]}.done"
        if self._kind == "call":
            yield self._about(name, arguments=item["arguments"], name=item["name"])
        else:
            (part,) = item["content"]
            more: dict[str, Any] = {"logprobs": []} if self._kind == "text" else {}
            yield self._about(name, text=part["text"], **more)
            if self._kind == "text":
                yield self._about("response.content_part.done", part=part)
        self._kind = ""
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    # --- the response --------------------------------------------------------------------------

    def _ended(self, last: Piece, tally: Tally) -> dict[str, Any]:
        """The response, which is also kept."""
        cut = self._reader.reason(last) == "length"
        response = self._response("incomplete" if cut else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["usage"] = _usage(tally)
        if self._notices:
            response["cmc"] = {"notices": self._notices}
        self._keep(response, self._as_message())
        return response

    def _response(self, status: str) -> dict[str, Any]:
        more = {"status": status, "error": None, "incomplete_details": None, "usage": None}
        return {**self._fixed, **more, "output": [*self._items]}

    def _as_message(self) -> dict[str, Any]:
        """The answer as a chat has it, for what comes after."""
        texts = [one["content"][0]["text"] for one in self._items if one["type"] == "message"]
        calls = [
            {
                "id": one["call_id"],
                "type": "function",
                "function": {"name": one["name"], "arguments": one["arguments"]},
            }
            for one in self._items
            if one["type"] == "function_call"
        ]
        message = {"role": "assistant", "content": "".join(texts)}
        return {**message, "tool_calls": calls} if calls else message

    def _about(self, event: str, /, **fields: Any) -> Event:
        """An event about the item under way."""
        index = {"output_index": len(self._items) - 1}
        if self._kind != "call":
            index["content_index"] = 0
        return self._event(event, item_id=self._items[-1]["id"], **index, **fields)

    def _event(self, event: str, /, **fields: Any) -> Event:
        self._number += 1
        return event, {"type": event, "sequence_number": self._number - 1, **fields}


def _new_item(said: Said) -> Item:
    name = secrets.token_hex(12)
    if said.kind == "call":
        call = {"call_id": said.id, "name": said.name, "arguments": ""}
        return {"type": "function_call", "id": f"fc_{name}", **call, "status": "completed"}
    if said.kind == "thinking":
        content: list[Item] = [{"type": "reasoning_text", "text": ""}]
        return {"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": content}
    content = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    message = {"type": "message", "id": f"msg_{name}", "role": "assistant"}
    return {**message, "content": content, "status": "completed"}


def _open(item: Item) -> Item:
    """An item as it stands when it begins."""
    begun = {"status": "in_progress"} if "status" in item else {}
    return {**item, **begun, **({"content": []} if "content" in item else {})}


def _usage(tally: Tally) -> dict[str, Any]:
    usage = tally.usage()
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
