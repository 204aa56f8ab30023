"""Tools that a request offers: how the model is told of them, and its calls read from its reply.

    tools, tool_choice --offered--> Tools --told--> the GGUF's own template, or a system text
                                      |---form----> what the reply may look like (Lark)
    reply "Let me see.<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>"
                                      `---CallReader--> content, calls as they come

One form of calls is asked for, that of Qwen's and Hermes' templates. A GGUF whose template has
tools in that form is told of them by it; any other base by a system text that explains the form.
llguidance keeps the reply to it, the arguments to their schema.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cmc_local.server.bodies import ChatBody
from cmc_local.server.errors import invalid, quoted
from cmc_local.server.limits import RequestLimits
from cmc_local.text.forms import json_rule

BEGIN: Final = "<tool_call>"
_NAME, _ARGUMENTS = '\n{"name": ', ', "arguments": '
END: Final = "}\n</tool_call>"
_NOTHING: Final = {"type": "object", "properties": {}}
_EXPLAINED: Final = """You can call these functions, each a JSON object on a line:
{functions}
To call one write exactly this, once for each call, and nothing after it:
<tool_call>
{{"name": "the function's name", "arguments": {{"its": "arguments"}}}}
</tool_call>
You are then given the result."""


@dataclass(frozen=True)
class Tools:
    """Functions that the model may call."""

    functions: Sequence[Mapping[str, Any]]
    """`{"name", "description", "parameters"}` each."""
    required: bool
    """Whether it must call one."""
    parallel: bool
    """Whether it may call several in one reply."""

    @property
    def names(self) -> list[str]:
        """The functions'."""
        return [one["name"] for one in self.functions]

    def told(
        self, messages: list[dict[str, Any]], template: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages, and what the base's chat template is told beside them."""
        if template is not None and BEGIN in template and "tools" in template:
            tools = [{"type": "function", "function": dict(one)} for one in self.functions]
            return messages, {"tools": tools}
        lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in self.functions)
        explained = {"role": "system", "content": _EXPLAINED.format(functions=lines)}
        return [explained, *messages], {}

    def form(self) -> str:
        """What the reply may look like, a Lark grammar."""
        calls = " | ".join(f"call_{i}" for i in range(len(self.functions)))
        many = f'({calls}) ("\\n" ({calls}))*' if self.parallel else f"({calls})"
        rules = [f"start: {many}" if self.required else f"start: TEXT | {many}"]
        if not self.required:
            rules += [r"TEXT: /(.|\n)*/", f"begin[lazy]: TEXT {json.dumps(BEGIN)}"]
        begin = json.dumps(BEGIN) if self.required else "begin"
        for i, one in enumerate(self.functions):
            head = json.dumps(f"{_NAME}{json.dumps(one['name'])}{_ARGUMENTS}")
            schema = one.get("parameters") or _NOTHING
            arguments = json_rule(schema, lenient=not one.get("strict"))
            rules.append(f"call_{i}: {begin} {head} {arguments} {json.dumps(END)}")
        return "\n".join(rules)


def offered(body: ChatBody, limits: RequestLimits) -> Tools | None:
    """The tools that a reply may call; None where there are none. Raises Refusal by name."""
    if not body.tools or body.tool_choice == "none":
        return None
    if len(json.dumps(body.tools)) > limits.form_bytes:
        raise invalid(f"tools have more than {limits.form_bytes} bytes", "tools")
    functions = [_function(one, f"tools[{i}]") for i, one in enumerate(body.tools)]
    choice = body.tool_choice
    if isinstance(choice, Mapping):
        named = (choice.get("function") or {}).get("name") or choice.get("name")
        functions = [one for one in functions if one["name"] == named]
        if not functions:
            told = f"tool_choice names {quoted(str(named))}, which is not among the tools"
            raise invalid(told, "tool_choice")
    elif choice not in (None, "auto", "required"):
        raise invalid("tool_choice must be auto, none, required or a function", "tool_choice")
    required = choice not in (None, "auto")
    return Tools(functions, required, body.parallel_tool_calls is not False)


def _function(tool: Any, param: str) -> Mapping[str, Any]:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    found = tool.get("function") if kind == "function" else None
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        told = f'{param} must be {{"type": "function", "function": {{"name": ...}}}}'
        raise invalid(told, param)
    if not isinstance(found.get("parameters") or {}, Mapping):
        raise invalid(f"{param}.function.parameters must be a schema", param)
    return found


class CallReader:
    """Reads one reply as it comes, which is of the form that `Tools.form` gives.

    Small models forget the tags: a reply that is nothing but the JSON of a call counts as one, so
    a reply that begins like that is held back to its end.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the functions'."""
        self.calls = 0
        """How many calls have begun."""
        self._names = names
        self._held = ""  # may be the beginning of BEGIN or END
        self._within = False  # a call's arguments
        self._said = False  # some content has been given

    def read(self, text: str, *, last: bool = False) -> dict[str, Any]:
        """What is new, as a chat's delta: `content` and `tool_calls`, where there is some.

        With `last` nothing is held back any more.
        """
        self._held += text
        if not self.calls and not self._said and _may_be_bare(self._held):
            if not last:
                return {}
            if (bare := self._bare_call()) is not None:
                return {"tool_calls": bare}
        content, called = "", []
        while True:
            before, found = self._up_to(END if self._within else BEGIN, last=last)
            if self._within and before:
                called.append(self._call(function={"arguments": before}))
            elif not self._within and not self.calls:  # between calls stands a line break alone
                content += before
            if not found:
                break
            if self._within:
                self._within = False
                continue
            head, complete, arguments = self._held.partition(_ARGUMENTS)
            if not complete:  # the name is still to come
                self._held = BEGIN + self._held
                break
            self._held, self._within = arguments, True
            called.append(self._named(json.loads(head.removeprefix(_NAME)), ""))
        self._said = self._said or bool(content)
        told: dict[str, Any] = {"content": content} if content else {}
        return {**told, "tool_calls": called} if called else told

    def _bare_call(self) -> list[dict[str, Any]] | None:
        """The call that a reply without tags is; None where it is none."""
        text = self._held.strip().removeprefix("```json").removesuffix("```")
        try:
            found = json.loads(text)
        except ValueError:
            return None
        if not isinstance(found, dict) or found.get("name") not in self._names:
            return None
        given = found.get("arguments")
        if not isinstance(given, dict):
            return None
        self._held = ""
        return [self._named(found["name"], json.dumps(given, ensure_ascii=False))]

    def _named(self, name: str, arguments: str) -> dict[str, Any]:
        """The beginning of one more call."""
        self.calls += 1
        named = {"name": name, "arguments": arguments}
        return self._call(id=f"call_{secrets.token_hex(12)}", type="function", function=named)

    def _up_to(self, sign: str, *, last: bool) -> tuple[str, bool]:
        """What is held before a sign, and whether the sign came; both are held no more."""
        before, found, after = self._held.partition(sign)
        if found:
            self._held = after
            return before, True
        most = 0 if last else min(len(before), len(sign) - 1)
        kept = next((n for n in range(most, 0, -1) if sign.startswith(before[-n:])), 0)
        self._held = before[len(before) - kept :]
        return before[: len(before) - kept], False

    def _call(self, **told: Any) -> dict[str, Any]:
        return {"index": self.calls - 1, **told}


def _may_be_bare(text: str) -> bool:
    """Whether a reply that begins so may be a call without its tags."""
    text = text.lstrip()
    return text.startswith("{") or text[:7] == "```json"[: len(text)]


def whole_calls(deltas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a reply that is whole."""
    calls: list[dict[str, Any]] = []
    for one in (call for delta in deltas for call in delta.get("tool_calls", ())):
        if "id" in one:
            calls.append({"id": one["id"], "type": "function", "function": dict(one["function"])})
        else:
            calls[one["index"]]["function"]["arguments"] += one["function"]["arguments"]
    return calls
