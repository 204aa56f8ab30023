"""`POST /v1/messages`, Anthropic's protocol: what it asks, as a chat of ours.

    system, messages, tools, ...  --as_chat-->  ChatBody  --> asks, as for chat completions
    message_events.py             <-- pieces

Blocks of text, tool_use, tool_result and thinking are read; pictures and documents are refused by
name. `cmc` says what steers, as in chat completions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server.answering import answer
from cmc_local.server.bodies import (
    AdapterAlpha,
    Asking,
    Body,
    ChatBody,
    Tokens,
    converted,
    parse,
)
from cmc_local.server.errors import invalid, quoted
from cmc_local.server.message_events import Message
from cmc_local.server.replying import Replying
from cmc_local.server.requests import chat_asks
from cmc_local.server.service import Service
from cmc_local.server.tools import Tools, offered

_THINKS: Final = {"enabled": True, "adaptive": True, "disabled": False}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


class Turn(Body):
    role: str
    content: Any


class MessagesBody(Asking):
    """The fields of a request."""

    messages: list[Turn] = Field(min_length=1)
    model: str | None = None
    max_tokens: Tokens = None
    system: Any = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = None
    top_k: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    thinking: Any = None
    output_config: Any = None
    cmc: list[AdapterAlpha] | None = None
    cmc_steer_thinking: bool | None = None


async def messages(request: Request) -> Response:
    """The reply to a conversation."""
    service: Service = request.app.state.service
    body = parse(MessagesBody, await request.body())
    if body.max_tokens is None:
        raise invalid("max_tokens is missing: say how long the reply may be", "max_tokens")
    chat, entry = as_chat(body), service.find(body.model)
    setting = service.setting(entry)
    tools = offered(chat, setting.limits)
    replying = Replying(service, entry, chat_asks(chat, setting, tools), n=1, param="messages")
    names = () if tools is None else tools.names
    frame = Message(body.model or entry.served_name, names, body.notices)
    return await answer(request, service, frame, replying, stream=bool(body.stream))


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a request has for the base model."""
    service: Service = request.app.state.service
    chat = as_chat(parse(MessagesBody, await request.body()))
    entry = service.find(chat.model)
    setting = service.setting(entry)
    tools: Tools | None = offered(chat, setting.limits)
    (ask,) = chat_asks(chat, setting, tools)
    return JSONResponse({"input_tokens": await service.prompt_tokens(entry, ask)})


def as_chat(body: MessagesBody) -> ChatBody:
    """The same request in OpenAI's shape. Raises Refusal that names what cannot be read."""
    told: list[dict[str, Any]] = []
    if body.system is not None:
        told.append({"role": "system", "content": _text(body.system, "system")})
    for number, turn in enumerate(body.messages):
        told += _turn(turn, f"messages[{number}]")
    choice = body.tool_choice or {}
    if not isinstance(choice, Mapping):
        raise invalid("tool_choice must be an object", "tool_choice")
    fields = {
        **body.model_dump(include={"model", "max_tokens", "temperature", "top_p", "top_k", "cmc"}),
        "cmc_steer_thinking": body.cmc_steer_thinking,
        "messages": told,
        "stop": body.stop_sequences,
        "tools": None if body.tools is None else [_tool(*one) for one in enumerate(body.tools)],
        "tool_choice": _tool_choice(choice),
        "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False),
        "enable_thinking": _thinks(body.thinking),
        "response_format": _format(body.output_config),
        "reasoning_effort": _effort(body.output_config),
    }
    return converted(ChatBody, fields)


def _turn(turn: Turn, param: str) -> list[dict[str, Any]]:
    """A turn as messages: results of tools first, each a message of its own."""
    if turn.role not in ("user", "assistant", "system"):
        told = f"the role {quoted(turn.role)} is not known here: use user or assistant"
        raise invalid(told, f"{param}.role")
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if not isinstance(turn.content, list):
        raise invalid(f"{param}.content must be a text or a list of blocks", f"{param}.content")
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    more: dict[str, Any] = {}
    for number, block in enumerate(turn.content):
        place = f"{param}.content[{number}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            texts.append(_text([block], place))
        elif kind == "tool_use":
            more.setdefault("tool_calls", []).append(_call(block, place))
        elif kind == "tool_result":
            text = _text(block.get("content") or "", f"{place}.content")
            text = f"Error: {text}" if block.get("is_error") else text
            named = {"role": "tool", "tool_call_id": str(block.get("tool_use_id", ""))}
            results.append({**named, "content": text})
        elif kind == "thinking":
            more["reasoning_content"] = str(block.get("thinking", ""))
        elif kind != "redacted_thinking":
            raise invalid(f"{place}: blocks of type {quoted(str(kind))} cannot be read", place)
    if texts or more:
        results.append({"role": turn.role, "content": "".join(texts), **more})
    return results


def _text(value: Any, param: str) -> str:
    """A text, or the texts of a list of blocks."""
    if isinstance(value, str):
        return value
    found = []
    for block in value if isinstance(value, list) else [value]:
        is_text = isinstance(block, Mapping) and block.get("type") == "text"
        if not is_text or not isinstance(block.get("text"), str):
            raise invalid(f"{param} must be a text or a list of text blocks", param)
        found.append(block["text"])
    return "".join(found)


def _call(block: Mapping[str, Any], param: str) -> dict[str, Any]:
    name, given = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise invalid(f"{param} must have a name and an input", param)
    function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _tool(number: int, tool: Any) -> dict[str, Any]:
    param = f"tools[{number}]"
    kind = tool.get("type", "custom") if isinstance(tool, Mapping) else None
    if kind not in (None, "custom") or not isinstance(tool, Mapping):
        raise invalid(f"{param}: tools of type {quoted(str(kind))} cannot be used here", param)
    function = {"name": tool.get("name"), "description": tool.get("description") or ""}
    parameters = {"parameters": tool.get("input_schema") or {}}
    return {"type": "function", "function": {**function, **parameters}}


def _tool_choice(choice: Mapping[str, Any]) -> Any:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in _CHOICES:
        raise invalid("tool_choice.type must be auto, any, tool or none", "tool_choice.type")
    return _CHOICES[kind]


def _thinks(value: Any) -> bool | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in _THINKS:
        raise invalid("thinking.type must be enabled, adaptive or disabled", "thinking.type")
    return _THINKS[kind]


def _effort(config: Any) -> Any:
    return config.get("effort") if isinstance(config, Mapping) else None


def _format(config: Any) -> Any:
    """`output_config.format`, a JSON schema."""
    form = config.get("format") if isinstance(config, Mapping) else None
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise invalid("output_config.format must be a json_schema", "output_config.format")
    return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
