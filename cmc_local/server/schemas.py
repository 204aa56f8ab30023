"""Whether a JSON schema or a grammar that a stranger sent is small enough to be worked on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from cmc_local.server import gbnf, grammars
from cmc_local.server.errors import invalid
from cmc_local.server.limits import RequestLimits

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_REPEATED = re.compile(r"\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?\}")


def schema_text(schema: dict[str, Any], param: str, limits: RequestLimits) -> str:
    """The schema as JSON text. Raises Refusal where it is large, deep or counts far."""
    _check_depth(schema, param, limits.schema_depth)
    text = json.dumps(schema)
    if len(text) > limits.schema_bytes:
        raise invalid(f"{param} has {len(text)} bytes, more than {limits.schema_bytes}", param)
    _check_counts(schema, param, limits)
    return text


def grammar_text(grammar: str, param: str, limits: RequestLimits) -> str:
    """The grammar itself. Raises Refusal where it is large, counts far, or has no end."""
    size = len(grammar.encode("utf-8", "replace"))
    if size > limits.grammar_bytes:
        raise invalid(f"{param} has {size} bytes, more than {limits.grammar_bytes}", param)
    _check_repeated(grammar, param, limits.repetitions)
    _check_places(lambda: gbnf.read_grammar(grammar), param, limits)
    return grammar


def _check_depth(schema: dict[str, Any], param: str, most: int) -> None:
    level: list[Any] = [schema]
    for _ in range(most):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return
    raise invalid(f"{param} is nested deeper than {most} levels", param)


def _parts(value: Any) -> list[Any]:
    """The objects and lists directly in one."""
    inner = value.values() if isinstance(value, dict) else value
    return [part for part in inner if isinstance(part, dict | list)]


def _check_counts(value: Any, param: str, limits: RequestLimits) -> None:
    if isinstance(value, dict):
        for name in _COUNTS:
            count, most = value.get(name), limits.repetitions
            if isinstance(count, int | float) and count > most:
                raise invalid(f"{param}: {name} is {count}, more than {most}", param)
        if isinstance(pattern := value.get("pattern"), str):
            _check_repeated(pattern, param, limits.repetitions)
            _check_places(lambda: {"pattern": gbnf.read_pattern(pattern)}, param, limits)
    for part in _parts(value):
        _check_counts(part, param, limits)


def _check_repeated(text: str, param: str, most: int) -> None:
    for match in _REPEATED.finditer(text):
        for count in match.groups():
            if count and (len(count) > 9 or int(count) > most):
                raise invalid(f"{param}: {match[0]} repeats more than {most} times", param)


def _check_places(
    read: Callable[[], Mapping[str, gbnf.Choice]], param: str, limits: RequestLimits
) -> None:
    try:
        count = grammars.places(read())
    except gbnf.Unreadable as error:
        raise invalid(f"{param}: {error}", param) from None
    if count > (most := limits.grammar_places):
        told = f"{param} leaves open where in it a text has come, in more than {most} ways"
        raise invalid(f"{told}: repeat less that may itself be long or short", param)
