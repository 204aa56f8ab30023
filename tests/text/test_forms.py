"""Forms of a reply: what is read, what is refused, and that random replies keep to them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cmc_local.base.model import BaseModel
from cmc_local.errors import UsageError
from cmc_local.settings import Sampling
from cmc_local.text.forms import form_of

COLOR = {"enum": ["red", "blue"]}
RECURSIVE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}
DOUBLING = [f"a{i}: a{i + 1} a{i + 1}" for i in range(60)]
SCHEMAS: dict[str, dict[str, Any]] = {
    "an enumeration with null": {
        "type": "object",
        "properties": {"c": {"type": ["string", "null"], "enum": ["red", "blue", None]}},
        "required": ["c"],
    },
    "allOf around a definition": {
        "type": "object",
        "properties": {"c": {"allOf": [{"$ref": "#/definitions/Color"}]}},
        "required": ["c"],
        "additionalProperties": False,
        "definitions": {"Color": COLOR},
    },
    "a pattern of two kinds": {"type": "string", "pattern": "^[a-z]{1,9}$|^[0-9]{1,9}$"},
    "characters beyond one byte": {"enum": ["👍", "👎"]},
    "bounds of a number": {
        "type": "object",
        "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["stars"],
    },
    "a definition named like a format": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "kind": {"$ref": "#/$defs/date"},
        },
        "required": ["day", "kind"],
        "$defs": {"date": COLOR},
    },
    "quotes in a constant": {"const": 'say "hi"'},
    "digits": {"type": "string", "pattern": r"^\d{5}$"},
    "items of any kind": {"type": "array", "items": {"maxLength": 3}, "maxItems": 2},
    "a recursive model": RECURSIVE,
    "a property without a type, named as a keyword": {
        "type": "object",
        "properties": {"properties": {"enum": [1, 2]}, "enum": COLOR},
        "required": ["properties", "enum"],
    },
}


@cache
def opened(gguf: Path) -> BaseModel:
    return BaseModel(gguf, context=256)


@pytest.fixture
def base(tiny_gguf: Path) -> Iterator[BaseModel]:
    yield opened(tiny_gguf)


def random_reply(base: BaseModel, sampling: Sampling, seed: int, most: int = 400) -> str | None:
    """A reply in which every allowed token is as likely as any other; None if it does not end."""
    form = form_of(sampling)
    assert form is not None
    matcher, draw = base.forms.matcher(form), random.Random(seed)
    said: list[bytes] = []
    for _ in range(most):
        token = int(draw.choice(matcher.allowed()))
        if token in base.forms._words.ends:
            return b"".join(said).decode()
        said.append(base.vocabulary.tokens[token])
        matcher.take(token)
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_replies_are_valid_under_their_schema(base: BaseModel, name: str) -> None:
    schema = SCHEMAS[name]
    replies = [random_reply(base, Sampling(json_schema=schema), seed) for seed in range(8)]
    finished = [one for one in replies if one is not None]
    assert finished
    for one in finished:
        jsonschema.validate(json.loads(one), schema)


def test_a_string_holds_no_raw_line_break(base: BaseModel) -> None:
    for seed in range(20):
        said = random_reply(base, Sampling(json_schema={"type": "string", "maxLength": 30}), seed)
        assert said is None or isinstance(json.loads(said), str)


@pytest.mark.parametrize(
    ("form", "possible"),
    [
        ({"regex": "ab|cd"}, {"ab", "cd"}),
        ({"regex": "^(ab|cd)$"}, {"ab", "cd"}),
        ({"lark": 'start: "x" y\ny: "1" | "2"'}, {"x1", "x2"}),
        ({"grammar": 'root ::= "x" y\ny ::= "1" | "2"'}, {"x1", "x2"}),
        ({"grammar": 'root ::= root "y" | "x"'}, {"x" + "y" * i for i in range(400)}),
    ],
)
def test_other_forms_are_kept(base: BaseModel, form: dict[str, str], possible: set[str]) -> None:
    said = {random_reply(base, Sampling(**form), seed) for seed in range(12)}  # type: ignore[arg-type]
    assert len(said) > 1
    assert said - {None} <= possible


def test_a_pydantic_model_is_a_schema(base: BaseModel) -> None:
    from pydantic import BaseModel as Model

    class Answer(Model):
        yes: bool

    said = random_reply(base, Sampling(json_schema=Answer), 1)
    assert isinstance(json.loads(said or "")["yes"], bool)


def test_an_object_has_the_properties_that_are_named_and_no_others(base: BaseModel) -> None:
    named = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    for seed in range(6):
        assert json.loads(random_reply(base, Sampling(json_schema=named), seed) or "") == {"a": 1}
    more = {**named, "additionalProperties": {"enum": [2]}}
    found = [random_reply(base, Sampling(json_schema=more), seed) for seed in range(6)]
    assert any(set(json.loads(one)) - {"a"} for one in found if one is not None)


A, B = ({"properties": {name: {"enum": [1]}}, "required": [name]} for name in "ab")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", **A, "anyOf": [B]},
        {"type": "object", **A, "$ref": "#/$defs/b", "$defs": {"b": B}},
        {"type": "object", "allOf": [A, B]},
        {"items": {"type": "object", **A, "anyOf": [B]}, "minItems": 1, "type": "array"},
    ],
)
def test_an_object_that_is_composed_has_the_properties_of_all_its_parts(
    base: BaseModel, schema: dict[str, Any]
) -> None:
    found = [random_reply(base, Sampling(json_schema=schema), seed) for seed in range(8)]
    values = [json.loads(one) for one in found if one is not None]
    assert values
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            assert one["a"] == one["b"] == 1


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"json_schema": {"not": {"type": "string"}}}, "not"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "oneOf"),
        ({"json_schema": {"format": "no-such"}}, "no-such"),
        ({"json_schema": '{"type": "shape"}'}, "shape"),
        ({"json_schema": "no json"}, "Expecting value"),
        ({"json_schema": "[]"}, "object"),
        ({"json_schema": '{"items":' * 20_000}, "deep"),
        ({"regex": "[a-z"}, "regular expression"),
        ({"regex": "("}, "regular expression"),
        ({"lark": 'start: "a" b'}, "b"),
        ({"grammar": 'root ::= "a'}, "line 1"),
        ({"grammar": "root ::= nowhere"}, "nowhere"),
        ({"grammar": 'root ::= "a"\0'}, "grammar"),
        ({"grammar": " "}, "empty"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "deep"),
        ({"json_schema": {"allOf": [{"anyOf": [
            {"properties": {f"p{i}": {"type": kind}}} for kind in ("string", "null", "integer")
        ]} for i in range(14)]}}, "large"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_in_one_line(form: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        form_of(Sampling(**form))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "form",
    [
        {"grammar": "root ::= a\na ::= b\nb ::= a"},
        {"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        {"lark": "start: a0\n" + "\n".join(DOUBLING) + '\na60: "x"'},
    ],
)  # fmt: skip
def test_what_costs_too_much_or_allows_nothing_ends_the_reply(
    base: BaseModel, form: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="form"):
        random_reply(base, Sampling(**form), 1)


def test_no_form_is_none() -> None:
    assert form_of(Sampling()) is None
    with pytest.raises(UsageError, match="exclude"):
        Sampling(regex="a", lark="start: b")
