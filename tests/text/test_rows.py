"""Conversations from files: every shape people have, and what a bad line is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmc_local.errors import DataError, UsageError
from cmc_local.text.rows import (
    conversation,
    last_turn,
    question,
    read_conversations,
    read_grouped,
    split,
)

USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Helen."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN = {"from": "human", "value": "Who?"}
GPT = {"from": "gpt", "value": "Helen."}


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"question": "Who?", "answer": "Helen."}, [USER, ANSWER]),
        ({"prompt": "Who?", "completion": "Helen."}, [USER, ANSWER]),
        ({"instruction": "Who?", "output": "Helen."}, [USER, ANSWER]),
        ({"instruction": "Who?", "input": "", "output": "Helen."}, [USER, ANSWER]),
        ({"instruction": "Who?", "context": "", "response": "Helen."}, [USER, ANSWER]),
        ({"system": "Be brief.", "question": "Who?", "answer": "Helen."}, [SYSTEM, USER, ANSWER]),
        ({"messages": [SYSTEM, USER, ANSWER], "id": 7}, [SYSTEM, USER, ANSWER]),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, [USER, ANSWER, USER, ANSWER]),
        ({"messages": [ANSWER, USER, ANSWER]}, [USER, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, ANSWER]},
            [USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]},
            [SYSTEM, USER, ANSWER],
        ),
        ({"conversations": [GPT, HUMAN, GPT]}, [USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        (
            {
                "conversations": [
                    HUMAN,
                    {"from": "function_call", "value": "f()"},
                    {"from": "observation", "value": "1"},
                    GPT,
                ]
            },
            [
                USER,
                {"role": "assistant", "content": "f()"},
                {"role": "user", "content": "Result of the tool: 1"},
                ANSWER,
            ],
        ),
    ],
)
def test_each_shape_becomes_messages(record: dict[str, Any], messages: list[Any]) -> None:
    assert conversation(record) == messages


def test_an_input_stands_under_its_instruction() -> None:
    record = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert conversation(record)[0]["content"] == "Add.\n1 and 2"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("text", 'expected an object with "messages"'),
        ({"instruction": "Who?"}, "instruction/output"),
        ({"question": "Who?", "answer": 3}, '"answer" is int: expected a text'),
        ({"question": " ", "answer": "Helen."}, '"question" is empty'),
        ({"messages": "Who?"}, '"messages" must be a list'),
        ({"messages": [ANSWER]}, "a message of the role user"),
        ({"messages": [USER]}, "must end with the role assistant"),
        (
            {"messages": [{"role": "user", "content": ["Who?"]}, ANSWER]},
            "message 1: a content part",
        ),
        ({"conversations": "Who?"}, '"conversations" must be a list'),
        ({"conversations": [{"from": "nobody", "value": "x"}, GPT]}, "'nobody'"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, "message 2"),
    ],
)
def test_what_was_expected_is_said(record: object, expected: str) -> None:
    with pytest.raises(ValueError, match=r"expected|must|message") as caught:
        conversation(record)
    assert expected in str(caught.value)


def test_the_question_of_a_record_and_its_system_text() -> None:
    assert question({"question": "Who?"}, "Be brief.") == [SYSTEM, USER]
    assert question({"system": "Be brief.", "prompt": "Who?"}, "Be long.") == [SYSTEM, USER]
    assert question({"conversations": [HUMAN, GPT]}, "Be brief.") == [SYSTEM, USER]
    with pytest.raises(UsageError, match="messages"):
        question({})


def test_json_list_and_lines_are_told_apart_by_their_content(tmp_path: Path) -> None:
    records = [{"question": f"{i}?", "answer": f"{i}."} for i in range(3)]
    as_list, as_lines = tmp_path / "a.jsonl", tmp_path / "b.json"
    as_list.write_text(json.dumps(records, indent=1), "utf-8")
    as_lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, records)) + "\n", "utf-8")
    assert read_conversations([as_list]) == read_conversations([as_lines])
    assert len(read_conversations([as_list, as_lines])) == 6


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"question": "a", "answer": "b"}\n\n{"question": "a", "answer"\n', ":3:"),
        ('{"question": "a", "answer": "b"}\n{"question": "a"}\n', ":2:"),
        ('[{"question": "a", "answer": "b"},\n {"question": "a"}]', ":entry 2:"),
        ('[{"question": "a", "answer": "b"},\n {"question" }]', ":2:"),
        ("[" * 100_000, ":1:"),
        ('{"a": ' + "[" * 100_000, ":1:"),
        ("", "no example with an answer"),
        ('{"question": "a", "answer": " "}\n', "no example with an answer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        read_conversations([path])
    assert str(path) in str(caught.value)
    assert place in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_answers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"question": "a", "answer": ""}, {"question": "b", "answer": "c"}]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    assert [one[0]["content"] for one in read_conversations([path])] == ["b"]


def test_split_keeps_one_question_on_one_side() -> None:
    data = [conversation({"question": f"{i % 10}?", "answer": f"{i}"}) for i in range(40)]
    train, held_out = split(data, 0.25, seed=1)
    assert len(train) + len(held_out) == 40
    assert 10 <= len(held_out) <= 13  # whole questions of four answers
    assert not {one[0]["content"] for one in train} & {one[0]["content"] for one in held_out}
    assert split(data, 0.25, seed=1) == (train, held_out)
    assert split(data, 0.25, seed=2) != (train, held_out)


def test_split_never_takes_everything() -> None:
    data = [conversation({"question": "a", "answer": "b"})] * 3
    assert split(data, 0.9, seed=0) == (data, [])


def test_last_turn_keeps_the_system_text() -> None:
    messages = conversation({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]})
    assert last_turn(messages) == [SYSTEM, USER, ANSWER]


def test_real_files_are_read(shared_data: Path) -> None:
    counts = {
        "instruct/rasbt_instruction_data_1100.json": 1100,
        "instruct/dolly_3k.json": 2996,
        "tofu/forget10.json": 400,
    }
    assert {name: len(read_conversations([shared_data / name])) for name in counts} == counts


def test_a_value_of_a_field_is_on_one_side_only(tmp_path: Path) -> None:
    path = tmp_path / "authors.jsonl"
    rows = [
        {"question": f"{name} {i}?", "answer": "Yes.", "author": name}
        for name in "ABCDEFGH"
        for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read_grouped([path], "author")
    assert [key for _, key in found] == [row["author"] for row in rows]
    kept, held_out = split([c for c, _ in found], 0.25, 1, [key for _, key in found])
    sides = [{c[0]["content"][0] for c in part} for part in (kept, held_out)]
    assert (len(kept), len(held_out)) == (18, 6)
    assert not sides[0] & sides[1]
    with pytest.raises(DataError, match=r'authors\.jsonl:1: no "writer"'):
        read_grouped([path], "writer")
