"""Bodies -> asks: one `Ask` for each choice that a request is to have.

    {"n": 2, "seed": 7, "prompt": ["a", "b"]} -> Ask(a, seed 7), Ask(a, 8), Ask(b, 7), Ask(b, 8)

The server's limits are held here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cmc_local.model.requests import Ask
from cmc_local.server import names
from cmc_local.server.bodies import MAX_COUNT, ChatBody, ChatMessage, CompletionBody, Generation
from cmc_local.server.errors import invalid, quoted
from cmc_local.server.forms import form_settings
from cmc_local.server.limits import RequestLimits
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message

SEEDS: Final = 2**32 - 1
"""How many seeds there are; others are taken modulo."""
_GREEDY_BELOW: Final = 1e-6  # what is divided by less than this overflows

_AS_THEY_ARE: Final = (
    *("top_p", "min_p", "typical_p"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty"),
)


@dataclass(frozen=True)
class Setting:
    """What the server brings to a request."""

    base: str
    """The base model's name."""
    alphas: Mapping[str, float]
    """Its adapters and their own strengths."""
    vocabulary: int
    """How many tokens the base model has."""
    text_bytes: int
    """More than so many never fit its context."""
    sampling: Sampling
    """What a request leaves open."""
    base_prompt: BasePrompt | None
    limits: RequestLimits


def chat_asks(body: ChatBody, setting: Setting) -> list[Ask]:
    """One for each of `n`."""
    messages = [_message(one, number) for number, one in enumerate(body.messages)]
    for number, message in enumerate(messages):
        check_text(message["content"], f"messages[{number}].content", setting.text_bytes)
    alphas = _alphas(body, setting)
    ask = Ask(
        prompt=messages,
        sampling=_sampling(body, body.max_completion_tokens, setting),
        alphas=alphas,
        exact=alphas is not None,
        base_prompt=setting.base_prompt,
        top_logprobs=_alternatives(body.alternatives, "top_logprobs", setting.limits),
        plain=bool(body.cmc_plain),
    )
    return _choices([ask], body.n, setting.limits)


def completion_asks(body: CompletionBody, setting: Setting) -> list[Ask]:
    """`n` for each prompt, those of the first prompt first."""
    alphas = _alphas(body, setting)
    ask = Ask(
        prompt="",
        sampling=_sampling(body, None, setting),
        alphas=alphas,
        exact=alphas is not None,
        top_logprobs=_alternatives(body.logprobs, "logprobs", setting.limits),
        echo=bool(body.echo),
    )
    for number, prompt in enumerate(body.prompt):
        check_prompt(prompt, f"prompt[{number}]", setting)
    prompts = [replace(ask, prompt=prompt) for prompt in body.prompt]
    return _choices(prompts, body.n, setting.limits)


def check_prompt(prompt: str | Sequence[int], param: str, setting: Setting) -> None:
    """Raise Refusal for a text that cannot fit, or a token that the base model does not have."""
    if isinstance(prompt, str):
        check_text(prompt, param, setting.text_bytes)
    else:
        check_tokens(prompt, param, setting.vocabulary)


def check_text(text: str, param: str, most: int) -> None:
    """Raise Refusal for a text that is too long to be cut into tokens, which nothing interrupts.

    llama.cpp's time for it can grow with the square of its length.
    """
    if (size := len(text.encode())) > most:
        told = f"{param} has {size} bytes, more than the {most} that may fit here: shorten it"
        raise invalid(told, param, "context_length_exceeded")


def check_tokens(tokens: Sequence[int], param: str, vocabulary: int) -> None:
    """Raise Refusal for a token that the base model does not have."""
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        told = f"{param}: there is no token {quoted(str(wrong))} among {vocabulary}"
        raise invalid(told, param)


def _choices(prompts: Sequence[Ask], n: int | None, limits: RequestLimits) -> list[Ask]:
    count = n or 1
    if count * len(prompts) > limits.choices:
        each = f" for each of {len(prompts)} prompts" if len(prompts) > 1 else ""
        raise invalid(f"n is {count}{each}: at most {limits.choices} choices are written", "n")
    return [_seeded(ask, number) for ask in prompts for number in range(count)]


def _seeded(ask: Ask, number: int) -> Ask:
    seed = ask.sampling.seed
    if seed is None or not number:
        return ask
    return replace(ask, sampling=replace(ask.sampling, seed=(seed + number) % SEEDS))


def _alphas(body: Generation, setting: Setting) -> dict[str, float] | None:
    """Which adapters act, and no others; `cmc` wins over the model's name, which must be one."""
    named = names.parse(body.model, setting.base, setting.alphas)
    if body.cmc is None:
        return named
    return names.choose([(one.adapter, one.alpha) for one in body.cmc], setting.alphas)


def _alternatives(count: int | None, param: str, limits: RequestLimits) -> int | None:
    if count is not None and count > limits.logprobs:
        raise invalid(
            f"{param} is {count}: at most {limits.logprobs} are listed: ask for fewer", param
        )
    return count


def _sampling(body: Generation, max_tokens: int | None, setting: Setting) -> Sampling:
    limits = setting.limits
    given: dict[str, Any] = {name: getattr(body, name) for name in _AS_THEY_ARE}
    most = body.max_tokens if max_tokens is None else max_tokens
    given["max_tokens"] = MAX_COUNT if most == -1 else most
    if body.temperature is not None:
        given["temperature"] = 0.0 if body.temperature < _GREEDY_BELOW else body.temperature
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)
    if body.seed is not None:
        given["seed"] = body.seed % SEEDS
    if body.stop is not None:
        given["stop"] = _stops(body.stop, limits)
    if body.logit_bias is not None:
        given["logit_bias"] = _bias(body.logit_bias, setting)
    chosen = {name: value for name, value in given.items() if value is not None}
    if body.seed == -1:  # llama.cpp's word for a new one each time
        chosen["seed"] = None
    chosen |= form_settings(body, limits)
    return replace(setting.sampling, **chosen)


def _stops(stops: Sequence[str], limits: RequestLimits) -> tuple[str, ...]:
    if len(stops) > limits.stops:
        raise invalid(f"stop has {len(stops)} texts, more than {limits.stops}: send fewer", "stop")
    if any(len(text) > limits.stop_characters for text in stops):
        most = limits.stop_characters
        raise invalid(f"a stop text is longer than {most} characters", "stop")
    return tuple(text for text in stops if text)


def _bias(given: Mapping[str, float], setting: Setting) -> tuple[tuple[int, float], ...]:
    """Token ids and what is added to their logits; -100 forbids a token."""
    most, size = setting.limits.logit_bias, setting.vocabulary
    if len(given) > most:
        raise invalid(
            f"logit_bias has {len(given)} tokens, more than {most}: send fewer", "logit_bias"
        )
    for name, bias in given.items():
        known = name.isascii() and name.isdigit() and len(name) < 10 and int(name) < size
        if not known:
            told = f"logit_bias: there is no token {quoted(name)} among {size}"
            raise invalid(told, "logit_bias")
        if not -100 <= bias <= 100:
            raise invalid(f"logit_bias of token {name} is not within -100 and 100", "logit_bias")
    return tuple((int(name), -math.inf if b == -100 else b) for name, b in given.items())


def _message(message: ChatMessage, number: int) -> Message:
    param = f"messages[{number}]"
    role = "system" if message.role == "developer" else message.role
    if role not in ("system", "user", "assistant"):
        known = "use system, developer, user or assistant"
        told = f"the role {quoted(message.role)} is not known here: {known}"
        raise invalid(told, f"{param}.role")
    if message.tool_calls:
        raise invalid(
            "tool_calls cannot be used here: send messages of text", f"{param}.tool_calls"
        )
    return {"role": role, "content": _text(message.content, f"{param}.content")}


def _text(content: Any, param: str) -> str:
    """A message's text; parts of type text are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{param} must be a text or a list of text parts", param)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            told = f"a content part of type {quoted(str(kind))} cannot be read here: only text can"
            raise invalid(told, f"{param}[{number}]")
        texts.append(text)
    return "".join(texts)
