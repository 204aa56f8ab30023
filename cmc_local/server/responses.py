"""`POST /v1/responses`, OpenAI's newer protocol: what it asks, as a chat of ours.

    instructions, input, tools, ...   --as_chat-->  ChatBody  --> asks, as for chat completions
    previous_response_id  --> what was said before, from `Remembered`
    response_events.py    <-- pieces

Responses are kept in memory, the oldest go first; `store: false` keeps none. `cmc` says what
steers, as in chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server.answering import answer
from cmc_local.server.bodies import AdapterAlpha, Asking, ChatBody, Tokens, converted, parse
from cmc_local.server.errors import invalid, quoted
from cmc_local.server.replying import Replying
from cmc_local.server.requests import chat_asks
from cmc_local.server.response_events import ResponseFrame
from cmc_local.server.service import Service
from cmc_local.server.tools import offered

Message = dict[str, Any]
_LIKE_CHAT = {
    *("model", "temperature", "top_p", "parallel_tool_calls", "seed", "cmc", "top_k", "min_p"),
    *("stop", "logit_bias", "enable_thinking", "chat_template_kwargs", "cmc_steer_thinking"),
}
"""Fields that chat completions have too, the last line's OpenAI has not."""


class ResponsesBody(Asking):
    """The fields of a request."""

    input: Any
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Tokens = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Any = None
    logit_bias: dict[str, float] | None = None
    text: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Any = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    cmc: list[AdapterAlpha] | None = None
    cmc_steer_thinking: bool | None = None


async def responses(request: Request) -> Response:
    """The response to an input."""
    service: Service = request.app.state.service
    body = parse(ResponsesBody, await request.body())
    before: list[Message] = []
    if body.previous_response_id is not None:
        before = service.remembered.find(body.previous_response_id, "previous_response_id")[1]
    said = [*before, *_input(body.input)]
    chat, entry = as_chat(body, said), service.find(body.model)
    setting = service.setting(entry)
    tools = offered(chat, setting.limits)
    replying = Replying(service, entry, chat_asks(chat, setting, tools), n=1, param="input")

    def keep(response: dict[str, Any], answer: Message) -> None:
        if body.store is not False:
            service.remembered.keep(response, [*said, answer])

    frame = ResponseFrame(
        _told(body, entry.served_name), () if tools is None else tools.names, body.notices, keep
    )
    return await answer(request, service, frame, replying, stream=bool(body.stream))


async def one_response(request: Request) -> Response:
    """A response that is kept still."""
    service: Service = request.app.state.service
    name: str = request.path_params["name"]
    return JSONResponse(service.remembered.find(name, "response_id")[0])


async def remove_response(request: Request) -> Response:
    """Forget a response."""
    service: Service = request.app.state.service
    name: str = request.path_params["name"]
    service.remembered.drop(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def as_chat(body: ResponsesBody, messages: list[Message]) -> ChatBody:
    """The same request as chat completions have it. Raises Refusal that names what is wrong."""
    system = [] if body.instructions is None else [_message("system", body.instructions)]
    reasoning = body.reasoning or {}
    fields = {
        **body.model_dump(include=_LIKE_CHAT),
        "messages": [*system, *messages],
        "max_tokens": body.max_output_tokens,
        "tools": None if body.tools is None else [_tool(*one) for one in enumerate(body.tools)],
        "tool_choice": body.tool_choice,
        "response_format": _format(body.text),
        "reasoning_effort": reasoning.get("effort") if isinstance(reasoning, Mapping) else None,
    }
    return converted(ChatBody, fields)


def _input(value: Any) -> list[Message]:
    """A text or a list of items as messages."""
    if isinstance(value, str):
        return [_message("user", value)]
    if not isinstance(value, list) or not value:
        raise invalid("input must be a text or a list of items", "input")
    found: list[Message] = []
    for number, item in enumerate(value):
        place = f"input[{number}]"
        if not isinstance(item, Mapping):
            raise invalid(f"{place} must be an object", place)
        kind = item.get("type", "message")
        if kind == "message":
            found.append(_message(str(item.get("role")), item.get("content")))
        elif kind == "function_call":
            _add_call(found, item)
        elif kind == "function_call_output":
            output = item.get("output")
            told = {"role": "tool", "tool_call_id": str(item.get("call_id", ""))}
            found.append({**told, "content": output})
        elif kind != "reasoning":
            raise invalid(f"{place}: items of type {quoted(str(kind))} cannot be read", place)
    return found


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _add_call(found: list[Message], item: Mapping[str, Any]) -> None:
    """A call becomes a part of the answer before it, as chat completions have it."""
    if not found or found[-1]["role"] != "assistant":
        found.append(_message("assistant", None))
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": str(item.get("call_id", "")), "type": "function", "function": function}
    found[-1].setdefault("tool_calls", []).append(call)


def _tool(number: int, tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        param = f"tools[{number}]"
        raise invalid(f"{param}: tools of type {quoted(str(kind))} cannot be used here", param)
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _format(text: Any) -> Any:
    """`text.format`, which has the schema where chat completions have one more level."""
    form = text.get("format") if isinstance(text, Mapping) else None
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    return form


def _told(body: ResponsesBody, name: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    text = body.text if isinstance(body.text, Mapping) else {}
    return {
        "model": body.model or name,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tools": body.tools or [],
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": body.reasoning or {"effort": None, "summary": None},
        "metadata": body.metadata or {},
        "store": body.store is not False,
        "truncation": "disabled",
    }
