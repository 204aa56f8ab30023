"""Model names and `cmc` -> strengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.server.errors import Refusal
from cmc_local.server.names import choose, listed, parse, served

OWN = {"instruct": 1.0, "forget": 0.5}
AWKWARD = {"a": 1.0, "a+b": 2.0, "b": 3.0, "a@1": 4.0}


@pytest.mark.parametrize("name", [None, "", "default", "larger+instruct+forget"])
def test_as_started_leaves_the_adapters_their_own(name: str | None) -> None:
    assert parse(name, "larger", OWN) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("larger", {}),
        ("base", {}),
        ("larger+forget", {"forget": 0.5}),
        ("base+instruct@0.8", {"instruct": 0.8}),
        ("larger+forget+instruct@-1e-1", {"instruct": -0.1, "forget": 0.5}),
        ("base+instruct@.5+forget@2.", {"instruct": 0.5, "forget": 2.0}),
    ],
)
def test_a_name_says_which_adapters_act(name: str, expected: dict[str, float]) -> None:
    assert parse(name, "larger", OWN) == expected


@pytest.mark.parametrize(
    "name", ["gpt-4", "larger-2", "larger+", "larger+other", "base+instructor", "+instruct"]
)
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(Refusal, match=r"there are|ask for one of") as refused:
        parse(name, "larger", OWN)
    assert (refused.value.status, refused.value.param) == (404, "model")


@pytest.mark.parametrize(
    "name",
    ["larger+instruct@", "base+instruct@x", "base+instruct@1x", "base+instruct@1e999",
     "base+instruct@nan", "base+instruct+instruct"],
)  # fmt: skip
def test_a_name_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(name, "larger", OWN)
    assert (refused.value.status, refused.value.param) == (400, "model")


def test_the_longest_adapter_that_fits_is_meant() -> None:
    assert parse("x+a+b", "x", AWKWARD) == {"a+b": 2}
    assert parse("x+a@1", "x", AWKWARD) == {"a@1": 4}
    assert parse("x+a@2+b", "x", AWKWARD) == {"a": 2, "b": 3}


def test_the_field_names_exactly_what_acts() -> None:
    assert choose([], OWN) == {}
    assert choose([("forget", None)], OWN) == {"forget": 0.5}
    assert choose([("forget", 0.1), ("instruct", 2)], OWN) == {"instruct": 2, "forget": 0.1}


def test_the_field_is_refused_where_it_is_wrong() -> None:
    with pytest.raises(Refusal, match="no adapter 'x'") as refused:
        choose([("forget", 1.0), ("x", 1.0)], OWN)
    assert (refused.value.status, refused.value.param) == (404, "cmc[1].adapter")
    with pytest.raises(Refusal, match="twice"):
        choose([("forget", 1.0), ("forget", 1.0)], OWN)


def test_what_is_listed_comes_once() -> None:
    assert listed("m", OWN) == ["m+instruct+forget", "m", "m+instruct", "m+forget"]
    assert listed("m", {"a": 1.0}) == ["m+a", "m"]
    assert listed("m", {}) == ["m"]
    assert served("m", OWN) == "m+instruct+forget"


@given(st.dictionaries(st.sampled_from(sorted(OWN)), st.floats(-9, 9)))
def test_a_written_name_is_read_back(alphas: dict[str, float]) -> None:
    name = "+".join(["larger", *(f"{one}@{alpha!r}" for one, alpha in alphas.items())])
    assert parse(name, "larger", OWN) == alphas


@pytest.mark.parametrize("alpha", ["100.1", "-101", "1e39", "1e400"])
def test_a_strength_that_makes_logits_no_numbers_is_refused(alpha: str) -> None:
    with pytest.raises(Refusal, match="within -100 and 100") as error:
        parse(f"base+instruct@{alpha}", "larger", OWN)
    assert (error.value.status, error.value.param) == (400, "model")
    assert parse("base+instruct@-100", "larger", OWN) == {"instruct": -100.0}
