"""A chat as a file: JSON, written whole or not at all, read whole or not at all.

    {"format": "cmc-local chat", "version": 1, "model": "larger.gguf",
     "alphas": {"instruct": 1.0}, "base_prompt": null, "system": null,
     "sampling": {"temperature": 0.0, ...}, "messages": [{"role": "user", "content": "..."}, ...]}

`model` and `alphas` say what the chat was held with; loading a file loads no model. Knows none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

from cmc_local.commands.chat_settings import SETTINGS, changed, number
from cmc_local.errors import CmcError, InputError, UsageError
from cmc_local.files import write_json
from cmc_local.settings import FORMS, Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message

FORMAT: Final = "cmc-local chat"
VERSION: Final = 1
LARGEST: Final = 1 << 26
"""Bytes of a file that is read; a chat has thousands."""


@dataclass(frozen=True, kw_only=True)
class SavedChat:
    """A conversation and what it was held with."""

    model: str
    """The GGUF's file name."""
    alphas: dict[str, float]
    """Each adapter's strength, by the adapter's name."""
    base_prompt: BasePrompt | None
    system: str | None
    sampling: Sampling
    messages: list[Message]
    """Questions and answers in turn, an answer last."""


def place(text: str, command: str) -> Path:
    """The path that follows a command; `~` is the home folder."""
    if not text or "\0" in text:
        raise UsageError(f"{command} takes a file: {command} talk.json")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of somebody unknown
        return Path(text)


def save(path: Path, chat: SavedChat) -> None:
    """Write a chat; over an older one, but over no other file."""
    try:
        taken = path.exists()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    if taken:
        try:
            load(path)
        except InputError:
            raise UsageError(f"{path} is there and is no saved chat: choose another name") from None
    sampling = {name: value for name, value in asdict(chat.sampling).items() if name in SETTINGS}
    head = {"format": FORMAT, "version": VERSION}
    write_json(path, {**head, **asdict(chat), "sampling": sampling})


def load(path: Path) -> SavedChat:
    """Read a chat; InputError, a line that names the file, if there is anything wrong with it."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file: give one that /save wrote")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        if len(data) > LARGEST:
            raise InputError("it is too large")
        return _chat(_parsed(data))
    except CmcError as error:
        raise InputError(f"{path} is no saved chat: {error}") from None


def _parsed(data: bytes) -> dict[str, Any]:
    """The object in a file. NaN and half a surrogate pair, which JSON lets through, are refused."""

    def no_number(text: str) -> NoReturn:
        raise InputError(f"{text} is no number")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=no_number)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise InputError("it is not JSON in UTF-8") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f'it does not say "format": "{FORMAT}"')
    if value.get("version") != VERSION:
        raise InputError(
            f"its version is {value.get('version')!r}, and this program reads {VERSION}"
        )
    return value


def _chat(value: dict[str, Any]) -> SavedChat:
    base_prompt = value.get("base_prompt")
    if base_prompt is not None and base_prompt not in get_args(BasePrompt):
        raise InputError(f"base_prompt must be one of {', '.join(get_args(BasePrompt))}")
    system = value.get("system")
    if system is not None and not isinstance(system, str):
        raise InputError("system must be a text")
    if not isinstance(value.get("model"), str):
        raise InputError("model must be the name of a GGUF file")
    return SavedChat(
        model=value["model"],
        alphas=_alphas(value.get("alphas")),
        base_prompt=base_prompt,
        system=system,
        sampling=_sampling(value.get("sampling")),
        messages=_messages(value.get("messages")),
    )


def _alphas(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise InputError("alphas must be an object of strengths by adapter name")
    return {name: number(str(alpha), f"the alpha of {name!r}") for name, alpha in value.items()}


def _sampling(value: Any) -> Sampling:
    if not isinstance(value, dict):
        raise InputError("sampling must be an object of settings")
    sampling = Sampling()
    for name, setting in value.items():
        for text in _texts(name, setting):
            sampling = changed(sampling, name, text)
    return sampling


def _texts(name: str, setting: Any) -> list[str]:
    """A setting as `changed` reads it; none where it has its default."""
    match name, setting:
        case _, None:
            return []
        case "stop", list() if all(isinstance(text, str) and text for text in setting):
            return setting
        case _, str() if name in FORMS:
            return [setting]
        case _ if name == "stop" or name in FORMS:
            raise InputError(f"sampling.{name} has a value of the wrong type")
        case _:
            return [str(setting)]


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or len(value) % 2:
        raise InputError("messages must be questions and answers in turn")
    found: list[Message] = []
    for i, one in enumerate(value):
        role = ("user", "assistant")[i % 2]
        content = one.get("content") if isinstance(one, dict) else None
        if not isinstance(content, str) or not content or one.get("role") != role:
            raise InputError(f"message {i + 1} must be a text of the role {role}")
        found.append({"role": role, "content": content})
    return found
