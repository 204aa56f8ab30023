"""A reply's parts, in order, however its pieces come."""

from __future__ import annotations

from cmc_local.model.replies import Piece
from cmc_local.server.said import Said, SaidReader

CALL = '<tool_call>\n{"name": "now", "arguments": {"at": 1}}\n</tool_call>'


def test_thoughts_then_text() -> None:
    reader = SaidReader(())
    first = [*reader.read(Piece("", thinking="Hm"))]
    both = [*reader.read(Piece("Yes", thinking="."))]
    last = Piece("!", finish_reason="stop")
    assert first == [Said("thinking", "Hm", begins=True)]
    assert both == [Said("thinking", ".", begins=False), Said("text", "Yes", begins=True)]
    assert [*reader.read(last)] == [Said("text", "!", begins=False)]
    assert reader.reason(last) == "stop"
    assert reader.reason(Piece("", finish_reason="length")) == "length"


def test_text_then_calls_each_with_its_name() -> None:
    reader = SaidReader(["now"])
    said = [one for letter in f"Look. {CALL}\n{CALL}" for one in reader.read(Piece(letter))]
    last = Piece("", finish_reason="stop")
    said += reader.read(last)
    begun = [(one.kind, one.name) for one in said if one.begins]
    assert begun == [("text", ""), ("call", "now"), ("call", "now")]
    assert "".join(one.text for one in said if one.kind == "text").strip() == "Look."
    assert "".join(one.text for one in said if one.kind == "call") == '{"at": 1}{"at": 1}'
    assert len({one.id for one in said if one.begins}) == 3
    assert reader.reason(last) == "tool_calls"


def test_a_tool_that_may_be_called_need_not_be() -> None:
    reader = SaidReader(["now"])
    last = Piece("No.", finish_reason="stop")
    assert [*reader.read(last)] == [Said("text", "No.", begins=True)]
    assert reader.reason(last) == "stop"
