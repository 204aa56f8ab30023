"""Conversations as programs send them -> what a chat template and a prompt form take.

    messages --read_history--> History --turns---> the base's own chat template
                                  |    --folded--> prompt forms: question, answer, question, ...
                                  `----begun-----> what the answer begins with (a prefilled answer)

Programs send two questions in a row, system texts later on, answers without text that call a tool,
its results, and a last answer to be continued. Templates take most of it as it is; a prompt form
knows questions and answers alone, so there the rest is folded into them. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from cmc_local.errors import UsageError
from cmc_local.text.prompts import Message
from cmc_local.text.thinking import without_thoughts

ROLES: Final = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    "developer": "system",
    "function": "tool",
}
"""The roles that are read, by the name that templates know."""
_BETWEEN: Final = "\n\n"
"""What stands between two texts that become one."""


@dataclass(frozen=True, eq=False)
class History:
    """A conversation that awaits an answer, or the rest of one."""

    turns: tuple[dict[str, Any], ...]
    """`role`, `content` (a text, an earlier answer's without its thoughts); where there are some
    `tool_calls`, `tool_call_id`, `name`, `reasoning_content`."""
    begun: str = ""
    """What the answer begins with."""

    @cached_property
    def folded(self) -> list[Message]:
        """At most one system text, then questions and answers by turns, a question last."""
        return fold(self.turns)


def read_history(messages: Sequence[Mapping[str, Any]]) -> History:
    """Messages in OpenAI's chat shape. Raises UsageError that names the message which is wrong."""
    turns = read_turns(messages)
    begun: list[str] = []
    while turns and turns[-1]["role"] == "assistant":
        last = turns.pop()
        if "tool_calls" in last:
            raise UsageError("the last message calls a tool: give the tool's result after it")
        begun.insert(0, last["content"])
    for turn in turns:
        if turn["role"] == "assistant":
            turn["content"] = without_thoughts(turn["content"])
    if not any(turn["role"] in ("user", "tool") for turn in turns):
        raise UsageError("there is no message with the role user: give one")
    if turns[-1]["role"] == "user" and not turns[-1]["content"].strip():
        raise UsageError("the question is empty: write one")
    return History(tuple(turns), _BETWEEN.join(begun))


def read_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each message by itself, as `History.turns` holds it. Raises UsageError that names one."""
    return [_turn(message, number) for number, message in enumerate(messages, start=1)]


def fold(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Turns as one system text, questions and answers: neighbours of one role become one text.

    A system text later on and a tool's result become part of a question, a tool call part of an
    answer.

    >>> fold([{"role": "user", "content": "Hi."}, {"role": "user", "content": "Who?"}])
    [{'role': 'user', 'content': 'Hi.\\n\\nWho?'}]
    """
    system: list[str] = []
    found: list[Message] = []
    for turn in turns:
        role, text = turn["role"], _spoken(turn)
        if role == "system" and not found:
            system.append(text)
            continue
        role = "assistant" if role == "assistant" else "user"
        if not found and role == "assistant":
            found.append({"role": "user", "content": ""})
        if found and found[-1]["role"] == role:
            before = found[-1]["content"]
            found[-1] = {"role": role, "content": _BETWEEN.join(filter(None, (before, text)))}
        else:
            found.append({"role": role, "content": text})
    head: list[Message] = [{"role": "system", "content": _BETWEEN.join(system)}] if system else []
    return [*head, *found]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Folded messages with the system text before the first question, for templates without one."""
    if messages[0]["role"] != "system":
        return list(messages)
    text = _BETWEEN.join(message["content"] for message in messages[:2])
    return [{"role": "user", "content": text}, *messages[2:]]


def message_text(content: Any) -> str:
    """A message's text: none is "", text parts are joined. Raises UsageError for other content."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError("its content must be a text or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if kind in ("text", "input_text", "output_text") else None
        if not isinstance(text, str):
            raise UsageError(f"a content part of type {kind!r} cannot be read: only text can")
        texts.append(text)
    return "".join(texts)


def _turn(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise UsageError(f"message {number} has the role {role!r}: use one of {known}")
    try:
        turn: dict[str, Any] = {
            "role": ROLES[role],
            "content": message_text(message.get("content")),
        }
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = [_call(call) for call in calls]
    except UsageError as error:
        raise UsageError(f"message {number}: {error}") from None
    more = ("tool_call_id", "name", "reasoning_content")
    turn |= {name: message[name] for name in more if message.get(name)}
    return turn


def _call(call: Any) -> dict[str, Any]:
    """A tool call whose arguments are an object, as templates want them, and not JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise UsageError('a tool call must hold {"function": {"name": ..., "arguments": ...}}')
    given = function.get("arguments") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise UsageError(f"the arguments of the call of {name} are no JSON") from None
    told = {"type": "function", "function": {"name": name, "arguments": given}}
    return {"id": call["id"], **told} if call.get("id") else told


def _spoken(turn: Mapping[str, Any]) -> str:
    """A turn as text alone."""
    text: str = turn["content"]
    if turn["role"] == "tool":
        return f"Result of {turn.get('name', 'the tool')}: {text}"
    calls = [json.dumps(one["function"], ensure_ascii=False) for one in turn.get("tool_calls", ())]
    return "\n".join(filter(None, (text, *calls)))
