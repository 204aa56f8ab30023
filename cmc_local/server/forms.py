"""The form that a request wants its reply to have, in every shape in which clients ask for one.

    response_format   {"type": "json_schema", "json_schema": {"schema": S}}     OpenAI
                      {"type": "json_object"}, with "schema": S too             llama.cpp
    json_schema, grammar, regex, lark                                           llama.cpp, own
    structured_outputs {"json" | "regex" | "choice" | "grammar": ...}           vLLM
    guided_json, guided_regex, guided_choice, guided_grammar                    vLLM before 0.12

One of them at most. Knows names and sizes; what can be kept is `text/forms.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from cmc_local.server.bodies import Generation
from cmc_local.server.errors import Refusal, invalid
from cmc_local.server.limits import RequestLimits
from cmc_local.settings import FORMS

Given = tuple[str, str, Any]
"""(the field's name, one of FORMS, its value)."""
_ANY_OBJECT: Final = {"type": "object"}
_VLLM: Final = {"json": "json_schema", "regex": "regex", "grammar": "grammar"}
NO_FORM: Final[dict[str, str | None]] = dict.fromkeys(FORMS)


def form_settings(body: Generation, limits: RequestLimits) -> dict[str, str | None]:
    """What `Sampling` is told: {} leaves the server's own form, NO_FORM takes it away.

    Raises Refusal for a form that is none, is too large, or is the second one.
    """
    given = [*_named(body), *_response_format(body), *_structured(body)]
    if len(given) > 1:
        first, second = given[0][0], given[1][0]
        told = f"{first} and {second} exclude each other: give one of them"
        raise invalid(told, first)
    if not given:
        is_text = body.response_format is not None
        return dict(NO_FORM) if is_text else {}
    param, form, value = given[0]
    text = json.dumps(value) if form == "json_schema" else value
    if not isinstance(text, str):
        raise invalid(f"{param} must be a text", param)
    if (size := len(text.encode("utf-8", "replace"))) > limits.form_bytes:
        raise invalid(f"{param} has {size} bytes, more than {limits.form_bytes}", param)
    return {**NO_FORM, form: text}


def _named(body: Generation) -> Iterator[Given]:
    for name in FORMS:
        if (value := getattr(body, name)) is not None:
            yield name, name, _schema(value, name) if name == "json_schema" else value


def _response_format(body: Generation) -> Iterator[Given]:
    form = body.response_format
    if form is None or form.type == "text":
        return
    param = "response_format"
    if form.type == "json_object":
        schema = _ANY_OBJECT if form.content is None else _schema(form.content, f"{param}.schema")
        yield param, "json_schema", schema
        return
    if form.json_schema is not None and form.json_schema.content is not None:
        place = f"{param}.json_schema.schema"
        yield place, "json_schema", _schema(form.json_schema.content, place)
    elif form.content is not None:
        yield f"{param}.schema", "json_schema", _schema(form.content, f"{param}.schema")
    else:
        told = "response_format needs json_schema with a schema"
        raise invalid(told, "response_format.json_schema")


def _structured(body: Generation) -> Iterator[Given]:
    """vLLM's field, and the four that it replaced."""
    named = body.structured_outputs
    if named is not None and not isinstance(named, dict):
        raise invalid("structured_outputs must be an object", "structured_outputs")
    for name, value in (named or {}).items():
        if value is not None:
            yield _one(f"structured_outputs.{name}", name, value)
    for name in ("json", "regex", "choice", "grammar"):
        if (value := getattr(body, f"guided_{name}")) is not None:
            yield _one(f"guided_{name}", name, value)


def _one(param: str, name: str, value: Any) -> Given:
    if name == "choice":
        is_list = isinstance(value, list) and bool(value)
        if not is_list or not all(isinstance(one, str) and one for one in value):
            raise invalid(f"{param} must be a list of texts, none empty", param)
        # A text in JSON's quotes is a text in Lark's.
        return param, "lark", "start: " + " | ".join(json.dumps(one) for one in value)
    if name not in _VLLM:
        raise _unknown(param)
    return param, _VLLM[name], _schema(value, param) if name == "json" else value


def _unknown(param: str) -> Refusal:
    return invalid(f"{param} cannot be honoured here: leave it out", param)


def _schema(value: Any, param: str) -> Any:
    """A schema as JSON's values; some clients send it as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(f"{param} is no JSON ({error})", param) from None
    if not isinstance(value, dict | bool):
        raise invalid(f"{param} must be an object", param)
    return value
