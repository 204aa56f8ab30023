"""Pieces as Anthropic's message and its events."""

from __future__ import annotations

from typing import Any

from cmc_local.engine.timings import Timings
from cmc_local.model.replies import Piece
from cmc_local.server.errors import unavailable
from cmc_local.server.message_events import Message
from cmc_local.server.replying import Tally

CALL = '<tool_call>\n{"name": "now", "arguments": {"at": 1}}\n</tool_call>'
TALLY = Tally(1, 1, {0: Timings(prompt_tokens=7, reused_tokens=2, generated_tokens=4)})
PIECES = [
    Piece("", thinking="hm"),
    Piece("Look."),
    Piece(CALL),
    Piece("", (), "stop"),
]


def test_a_message_is_whole() -> None:
    told = Message("tiny", ["now"], ["a notice"]).whole({0: PIECES}, TALLY)
    thought, text, call = told["content"]
    assert thought == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert text == {"type": "text", "text": "Look."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "now", {"at": 1})
    assert (told["stop_reason"], told["stop_sequence"]) == ("tool_use", None)
    assert told["usage"] == {
        "input_tokens": 5,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "output_tokens": 4,
    }
    assert told["cmc"] == {"notices": ["a notice"]}


def test_a_stream_names_each_block_and_ends_it() -> None:
    frame = Message("tiny", ["now"])
    events = [*frame.opening()]
    for piece in PIECES:
        events += frame.piece(0, piece, TALLY)
    events += frame.closing(TALLY)
    names = [name for name, _ in events]
    assert names == [str(data["type"]) for _, data in events if not isinstance(data, str)]
    assert names == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    blocks: list[Any] = [data for name, data in events if name == "content_block_start"]
    assert [one["index"] for one in blocks] == [0, 1, 2]
    assert blocks[2]["content_block"]["input"] == {}
    deltas: list[Any] = [data for name, data in events if name == "content_block_delta"]
    assert [one["delta"]["type"] for one in deltas] == [
        *("thinking_delta", "text_delta", "input_json_delta"),
    ]
    assert deltas[2]["delta"]["partial_json"] == '{"at": 1}'


def test_an_error_in_a_stream_is_an_event() -> None:
    ((name, data),) = Message("tiny", ()).failed(unavailable("stopped", "stopped"))
    assert name == "error" and not isinstance(data, str)
    assert data["error"]["type"] == "overloaded_error"
