"""The shapes in which clients ask for a form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmc_local.server.bodies import CompletionBody
from cmc_local.server.errors import Refusal
from cmc_local.server.forms import NO_FORM, form_settings
from cmc_local.server.limits import RequestLimits

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}
LIMITS = RequestLimits(form_bytes=500)


def settings(**fields: Any) -> dict[str, str | None]:
    body = CompletionBody.model_validate({"prompt": "a", **fields})
    return form_settings(body, LIMITS)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"json_schema": json.dumps(SCHEMA)},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA, "regex": None}},
    ],
)
def test_a_schema_is_found_wherever_it_stands(fields: dict[str, Any]) -> None:
    found = settings(**fields)
    assert json.loads(found.pop("json_schema") or "") == SCHEMA
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("fields", "form", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        ({"regex": "a+"}, "regex", "a+"),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"grammar": "root ::= x"}, "grammar", "root ::= x"),
        ({"guided_grammar": "root ::= x"}, "grammar", "root ::= x"),
        ({"lark": 'start: "a"'}, "lark", 'start: "a"'),
        ({"guided_choice": ["a", 'b"']}, "lark", r'start: "a" | "b\""'),
        ({"structured_outputs": {"choice": ["é"]}}, "lark", r'start: "\u00e9"'),
    ],
)
def test_other_forms(fields: dict[str, Any], form: str, value: str) -> None:
    assert settings(**fields) == {**NO_FORM, form: value}


def test_text_takes_the_servers_own_form_away_and_nothing_leaves_it() -> None:
    assert settings(response_format={"type": "text"}) == NO_FORM
    assert settings() == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "g", "response_format": {"type": "json_object"}}, "grammar"),
        ({"regex": "a", "guided_choice": ["b"]}, "regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": [1]}, "json_schema"),
        ({"guided_json": 7}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"grammar": 7}}, "structured_outputs.grammar"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"regex": "a" * 501}, "regex"),
        ({"json_schema": {"enum": ["x" * 600]}}, "json_schema"),
    ],
)
def test_what_is_no_form_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        settings(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
