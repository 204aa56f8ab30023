"""Schemas and grammars of strangers: size, depth, repetitions."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cmc_local.server.errors import Refusal
from cmc_local.server.limits import RequestLimits
from cmc_local.server.schemas import grammar_text, schema_text

LIMITS = RequestLimits(
    schema_bytes=500, schema_depth=4, grammar_bytes=60, repetitions=10, grammar_places=50
)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def test_a_schema_comes_back_as_text() -> None:
    schema = {"type": "array", "items": {"type": "string"}, "maxItems": 10}
    assert json.loads(schema_text(schema, "schema", LIMITS)) == schema
    assert schema_text(nested(4), "schema", LIMITS)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (nested(5), "deeper than 4"),
        ({"enum": ["x" * 600]}, "more than 500"),
        ({"maxItems": 11}, "maxItems is 11"),
        ({"anyOf": [{"type": "string", "minLength": 1e9}]}, "minLength"),
        ({"pattern": "^a{0,11}$"}, "repeats more than 10"),
        ({"pattern": "^(a{0,9}){0,9}$"}, "more than 50 ways"),
        ({"items": {"pattern": "^(a$"}}, "not closed"),
    ],
)
def test_a_schema_that_is_too_much_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        schema_text(schema, "schema", LIMITS)
    assert (refused.value.status, refused.value.param) == (400, "schema")


@pytest.mark.parametrize(
    "grammar", ["root ::= [a-z]{2,10}", "root ::= a{3}", 'root ::= "{" a* "}"']
)
def test_a_grammar_comes_back(grammar: str) -> None:
    assert grammar_text(grammar, "grammar", LIMITS) == grammar


@pytest.mark.parametrize(
    "grammar",
    [
        *("root ::= " + "a" * 60, "root ::= a{11}", "root ::= a{ 1 , 11 }"),
        *("root ::= a{,99999999999}", 'root ::= "a"{3,2}', 'root ::= "a"\0'),
        *('root ::= ("a"{0,9}){0,9}', 'root ::= x root "c" | "b"\nx ::= "a"?'),
    ],
)
def test_a_grammar_that_is_too_much_is_refused(grammar: str) -> None:
    with pytest.raises(Refusal):
        grammar_text(grammar, "grammar", LIMITS)


def test_looking_for_repetitions_takes_no_time() -> None:
    hostile = "{" + " " * 30_000 + "{1" + " " * 30_000
    begun = time.perf_counter()
    with pytest.raises(Refusal):
        grammar_text(hostile, "grammar", RequestLimits())
    assert time.perf_counter() - begun < 1.0  # backtracking took 30,000 steps for each space
