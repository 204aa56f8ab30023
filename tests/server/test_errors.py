"""Refusals: one line each, whatever they quote."""

from __future__ import annotations

import json

from cmc_local.server.errors import invalid, quoted


def test_a_message_is_one_line_that_any_client_can_read() -> None:
    told = invalid("a\nb\u2028c\udcff \u00e9", None)
    assert str(told) == "a\\nb\\u2028c\\udcff \u00e9"
    assert json.loads(bytes(told.response().body))["error"]["message"] == str(told)


def test_a_message_has_an_end() -> None:
    assert str(invalid("x" * 501, None)) == "x" * 500 + "..."


def test_what_a_client_sent_is_quoted_in_short() -> None:
    assert quoted("a'\n") == '"a\'\\n"'
    assert quoted("x" * 80) == repr("x" * 80)
    assert quoted("x" * 81) == repr("x" * 80 + "...")
