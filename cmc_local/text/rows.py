"""Files of questions and answers, in the shapes people have -> conversations that end in an answer.

| shape | keys |
|---|---|
| Alpaca | `instruction`, `input` (may be empty or absent), `output` |
| Dolly | `instruction`, `context`, `response` |
| TOFU | `question`, `answer` |
| completion | `prompt`, `completion` |
| OpenAI chat | `messages`: a list of `role` and `content` |
| ShareGPT | `conversations`: a list of `from` and `value` |

A `system` text may stand beside any but the last two, whose messages may be of every kind that
`history.py` reads: a delta learns from them as it is shown such a history later on. A file is JSON
(one list) or JSONL (an object a line); its name does not matter. What trains and what measures read
the same files. Knows no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cmc_local.errors import DataError, UsageError
from cmc_local.text.history import fold, read_turns
from cmc_local.text.prompts import Message
from cmc_local.text.records import read_records

Conversation = list[Message]

_SPEAKERS: Final = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "function_call": "assistant",
}
"""ShareGPT's names of roles."""

# Question, what is put under it, answer.
SHAPES = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("question", None, "answer"),
    ("prompt", None, "completion"),
)
EXPECTED = (
    'expected an object with "messages" or "conversations", or with one of these pairs of texts: '
    + ", ".join(f"{question}/{answer}" for question, _, answer in SHAPES)
)
ASKING = (
    'an object with "prompt", "messages", "conversations", "question" or "instruction" '
    '(and "input")'
)
"""What `question` reads."""


def read_conversations(paths: Sequence[Path]) -> list[Conversation]:
    """All conversations of the files, in order; examples whose last answer is empty are left out.

    Raises DataError, which names file and line (entry, in a JSON list) and what was expected.
    """
    return [one for one, _ in read_grouped(paths)]


def read_grouped(paths: Sequence[Path], field: str = "") -> list[tuple[Conversation, str]]:
    """The same, each with what stands under `field` in its record ("" without a field).

    Raises DataError for a record without that field.
    """
    found = [
        pair for path in paths for pair in _read(path, field) if pair[0][-1]["content"].strip()
    ]
    if not found:
        names = ", ".join(map(str, paths))
        raise DataError(f"{names}: no example with an answer in it: {EXPECTED}")
    return found


def question(record: Mapping[str, Any], system: str | None = None) -> list[Message]:
    """The messages that a record asks to be answered; UsageError says what was expected.

    An answer in it is left out. `system` comes first where the record has no system text itself.

    >>> question({"question": "Who?", "answer": "Helen."})
    [{'role': 'user', 'content': 'Who?'}]
    """
    if "messages" in record or "conversations" in record:
        messages = record.get("messages")
        try:
            messages = _shared(record["conversations"]) if messages is None else messages
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise UsageError('"messages" must be a list of {"role": ..., "content": ...}')
        if messages and messages[-1].get("role") == "assistant":  # training data holds the answer
            messages = messages[:-1]
        return _with_system(list(messages), system)
    name = next((key for key in ("prompt", "question", "instruction") if key in record), None)
    if name is None:
        raise UsageError(f"expected {ASKING}")
    more = record.get("input") or record.get("context") if name == "instruction" else None
    parts = [record[name], *([more] if more else [])]
    if not all(isinstance(part, str) for part in parts):
        raise UsageError(f'"{name}" must be a text')
    asked: Message = {"role": "user", "content": "\n".join(parts)}
    return _with_system(_with_system([asked], record.get("system")), system)


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def conversation(record: object) -> Conversation:
    """One record as messages; raises ValueError with what was expected.

    >>> conversation({"question": "Who?", "answer": "Helen."})
    [{'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'Helen.'}]
    """
    if not isinstance(record, dict):
        raise ValueError(EXPECTED)
    if "messages" in record:
        return _messages(record["messages"])
    if "conversations" in record:
        return _messages(_shared(record["conversations"]), "conversations")
    for question, extra, answer in SHAPES:
        if question in record and answer in record:
            return _exchange(record, question, extra, answer)
    raise ValueError(EXPECTED)


def split(
    conversations: Sequence[Conversation],
    share: float,
    seed: int,
    keys: Sequence[str] | None = None,
) -> tuple[list[Conversation], list[Conversation]]:
    """A training and a held-out part, drawn with the seed; one question is never in both.

    With `keys`, one for each conversation, it is one key that is never in both.
    """
    names = keys or [_question(one) for one in conversations]
    groups: dict[str, list[Conversation]] = {}
    for name, one in zip(names, conversations, strict=True):
        groups.setdefault(name, []).append(one)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    held_out: list[Conversation] = []
    while order[1:] and len(held_out) < round(share * len(conversations)):
        held_out += groups[order.pop()]
    chosen = set(order)
    kept = zip(names, conversations, strict=True)
    return [one for name, one in kept if name in chosen], held_out


def last_turn(messages: Conversation) -> Conversation:
    """The system text, the last question and its answer: for a delta of single turns."""
    return [*(m for m in messages[:1] if m["role"] == "system"), *messages[-2:]]


def _question(messages: Conversation) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")


def _read(path: Path, field: str) -> Iterator[tuple[Conversation, str]]:
    for place, record in read_records(path, f"a JSON or JSONL file, {EXPECTED}"):
        try:
            found = conversation(record)
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        if field and field not in record:
            raise DataError(f'{place}: no "{field}" to group by: give a field of the data')
        yield found, str(record[field]) if field else ""


def _exchange(
    record: dict[str, Any], question: str, extra: str | None, answer: str
) -> Conversation:
    query, reply = _text(record, question), _text(record, answer)
    more = _text(record, extra) if extra is not None and record.get(extra) else ""
    if not query.strip() and not more.strip():
        raise ValueError(f'"{question}" is empty: expected a text')
    messages: Conversation = []
    if record.get("system"):
        messages.append({"role": "system", "content": _text(record, "system")})
    whole = f"{query}\n{more}" if query and more else query or more
    return [
        *messages,
        {"role": "user", "content": whole},
        {"role": "assistant", "content": reply},
    ]


def _text(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f'"{key}" is {type(value).__name__}: expected a text')
    return value


def _messages(value: object, name: str = "messages") -> Conversation:
    """A history that ends in an answer: a system text, then questions and answers by turns."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f'"{name}" must be a list of objects with "role" and "content"')
    try:
        turns = read_turns(value)
    except UsageError as error:
        raise ValueError(f'"{name}": {error}') from None
    first = next((i for i, turn in enumerate(turns) if turn["role"] in ("user", "tool")), None)
    if first is None:
        raise ValueError(f'"{name}" must have a message of the role user: the question')
    if turns[-1]["role"] != "assistant":
        raise ValueError(f'"{name}" must end with the role assistant: the answer')
    # Some begin with a greeting of the assistant, which answers nothing.
    return fold([turn for i, turn in enumerate(turns) if i > first or turn["role"] != "assistant"])


def _shared(value: object) -> list[Any]:
    """ShareGPT's messages in OpenAI's shape; some files under that name are in it already."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError('"conversations" must be a list of objects with "from" and "value"')
    return [
        {"role": _SPEAKERS.get(str(one["from"]), one["from"]), "content": one.get("value")}
        if "from" in one
        else one
        for one in value
    ]
