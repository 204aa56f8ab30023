"""Bodies -> asks, checked (roles, texts, limits): one `Ask` for each choice of a request.

    {"n": 2, "seed": 7, "prompt": ["a", "b"]} -> Ask(a, seed 7), Ask(a, 8), Ask(b, 7), Ask(b, 8)

The server's limits are held here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from cmc_local.errors import UsageError
from cmc_local.model.requests import Ask
from cmc_local.server import names
from cmc_local.server.bodies import MAX_COUNT, ChatBody, ChatMessage, CompletionBody, Generation
from cmc_local.server.errors import invalid, quoted
from cmc_local.server.forms import form_settings
from cmc_local.server.limits import RequestLimits
from cmc_local.server.tools import Tools
from cmc_local.settings import FORMS, Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.history import ROLES, message_text
from cmc_local.text.prompts import Message

SEEDS: Final = 2**32 - 1
"""How many seeds there are; others are taken modulo."""
_GREEDY_BELOW: Final = 1e-6  # what is divided by less than this overflows

_BESIDE_TEXT: Final = {"tool_calls", "tool_call_id", "name", "reasoning_content"}
_AS_THEY_ARE: Final = (
    *("top_p", "min_p", "typical_p"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty", "penalty_last_n"),
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
    chat_template: str | None
    """The base model's own, if it is asked by it."""
    limits: RequestLimits


def chat_asks(body: ChatBody, setting: Setting, tools: Tools | None = None) -> list[Ask]:
    """One for each of `n`, which may call the tools."""
    most = setting.text_bytes
    messages = [_message(one, number, most) for number, one in enumerate(body.messages)]
    values, sampling = _template_values(body), _sampling(body, body.max_completion_tokens, setting)
    if body.cmc_steer_thinking is not None:
        sampling = replace(sampling, steer_thinking=body.cmc_steer_thinking)
    if tools is not None:
        if any(getattr(sampling, name) != getattr(setting.sampling, name) for name in FORMS):
            raise invalid("tools and a form of the reply exclude each other: drop one", "tools")
        messages, more = tools.told(messages, setting.chat_template)
        values |= more
        sampling = replace(sampling.without_form(), lark=tools.form())
    alphas = _alphas(body, setting)
    ask = Ask(
        prompt=cast(list[Message], messages),
        template_values=values,
        sampling=sampling,
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


def _message(message: ChatMessage, number: int, most: int) -> dict[str, Any]:
    """A message as `text/history.py` reads it; what it would refuse is refused here by name."""
    param = f"messages[{number}]"
    if message.role not in ROLES:
        told = f"the role {quoted(message.role)} is not known here: use one of {', '.join(ROLES)}"
        raise invalid(told, f"{param}.role")
    try:
        text = message_text(message.content)
    except UsageError as error:
        raise invalid(f"{param}.content: {error}", f"{param}.content") from None
    check_text(text, f"{param}.content", most)
    more = message.model_dump(exclude_none=True, include=_BESIDE_TEXT)
    return {"role": message.role, "content": text, **more}


def _template_values(body: ChatBody) -> dict[str, Any]:
    """What the base model's chat template is told, by any of the fields in use for it."""
    given = {"enable_thinking": body.enable_thinking, "reasoning_effort": body.reasoning_effort}
    found = {name: value for name, value in given.items() if value is not None}
    found |= body.chat_template_kwargs or {}
    for name in ("messages", "add_generation_prompt", "bos_token", "eos_token"):
        if name in found:
            param = f"chat_template_kwargs.{name}"
            raise invalid(f"{param} cannot be set: the server sets it itself", param)
    return found
