"""Pieces as OpenAI's response and its events."""

from __future__ import annotations

from typing import Any

from cmc_local.engine.timings import Timings
from cmc_local.model.replies import Piece
from cmc_local.server.errors import unavailable
from cmc_local.server.replying import Tally
from cmc_local.server.response_events import ResponseFrame

CALL = '<tool_call>\n{"name": "now", "arguments": {"at": 1}}\n</tool_call>'
TALLY = Tally(1, 1, {0: Timings(prompt_tokens=7, reused_tokens=2, generated_tokens=4)})
PIECES = [Piece("", thinking="hm"), Piece("Look."), Piece(CALL), Piece("", (), "stop")]


def frame() -> tuple[ResponseFrame, list[Any]]:
    kept: list[Any] = []
    return ResponseFrame({"model": "tiny"}, ["now"], [], lambda *one: kept.append(one)), kept


def test_a_response_is_whole_and_kept_as_a_message() -> None:
    made, kept = frame()
    told = made.whole({0: PIECES}, TALLY)
    thought, message, call = told["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Look."
    assert (call["name"], call["arguments"], call["status"]) == ("now", '{"at": 1}', "completed")
    assert (told["status"], told["usage"]["total_tokens"]) == ("completed", 11)
    ((response, answer),) = kept
    assert response is told
    assert answer["content"] == "Look."
    assert answer["tool_calls"][0]["function"] == {"name": "now", "arguments": '{"at": 1}'}
    assert answer["tool_calls"][0]["id"] == call["call_id"]


def test_a_stream_says_each_item_from_its_beginning_to_its_end() -> None:
    made, kept = frame()
    events = [*made.opening()]
    for piece in PIECES:
        events += made.piece(0, piece, TALLY)
    assert not kept
    events += made.closing(TALLY)
    data: list[Any] = [one for _, one in events]
    assert [one["type"].removeprefix("response.") for one in data] == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_text.delta", "reasoning_text.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    assert [one["sequence_number"] for one in data] == [*range(len(data))]
    items = [one for one in data if one["type"] == "response.output_item.added"]
    assert [one["output_index"] for one in items] == [0, 1, 2]
    assert data[-1]["response"] == kept[0][0]


def test_a_cut_response_is_incomplete_and_an_error_fails_it() -> None:
    made, _ = frame()
    told = made.whole({0: [Piece("a", finish_reason="length")]}, TALLY)
    assert told["status"] == "incomplete"
    made, kept = frame()
    ((name, data),) = made.failed(unavailable("the model stopped", "stopped"))
    assert name == "response.failed" and not isinstance(data, str)
    assert data["response"]["error"] == {"code": "stopped", "message": "the model stopped"}
    assert not kept
