"""Settings check themselves, quote what they received, and cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.errors import UsageError
from cmc_local.settings import Control, Limits, Sampling, Speculate, drafts

NAN = float("nan")


def test_defaults_are_llama_cpps() -> None:
    chosen = Sampling()
    assert (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p) == (0.8, 40, 0.95, 0.05)
    assert chosen.repeat_penalty == 1.0 and chosen.seed is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0.0, not -0.1"),
        ({"temperature": NAN}, "temperature must be at least 0.0, not nan"),
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_p": 1.5}, "top_p must be between 0.0 and 1.0, not 1.5"),
        ({"min_p": NAN}, "min_p must be between 0.0 and 1.0, not nan"),
        ({"typical_p": -1.0}, "typical_p must be between"),
        ({"repeat_penalty": 0.0}, "repeat_penalty must be above 0, not 0.0"),
        ({"penalty_last_n": -2}, "penalty_last_n must be at least -1, not -2"),
        ({"max_tokens": -1}, "max_tokens must be at least 0, not -1"),
        ({"seed": -1}, "seed must be between 0 and 4294967294, not -1"),
        ({"stop": ("\n", "")}, "a stop text is empty"),
        ({"grammar": "root ::= [a-z]", "json_schema": "{}"}, "exclude each other"),
    ],
)
def test_sampling_refuses_and_quotes(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (Control, {"unmapped": "none"}, "unmapped must be one of neutral, zero, not 'none'"),
        (Control, {"fallback": "last"}, "fallback must be one of first-piece, none, not 'last'"),
        (Control, {"mid_token": "on"}, "mid_token must be one of join, off, not 'on'"),
        (Limits, {"context": -1}, "context must be at least 0, not -1"),
        (Limits, {"batch": 0}, "batch must be at least 1, not 0"),
    ],
)
def test_control_and_limits_refuse_and_quote(
    kind: type[Control | Limits], wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        kind(**wrong)


def test_drafts_are_a_number_or_a_word_of_older_versions() -> None:
    words: tuple[Speculate, ...] = (0, 3, "off", "on", "auto")
    assert [drafts(one) for one in words] == [0, 3, 0, 4, 4]
    for wrong in (-1, 65, "often"):
        with pytest.raises(UsageError, match="number of drafts"):
            drafts(wrong)  # type: ignore[arg-type]


@given(
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 10**6),
    top_p=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**32 - 2),
)
def test_everything_in_range_is_kept(
    temperature: float, top_k: int, top_p: float, seed: int | None
) -> None:
    chosen = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    kept = (chosen.temperature, chosen.top_k, chosen.top_p, chosen.seed)
    assert kept == (temperature, top_k, top_p, seed)


@pytest.mark.parametrize("chosen", [Sampling(), Control(), Limits()])
def test_settings_are_frozen(chosen: object) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(chosen, type(chosen).__slots__[0], 1)  # type: ignore[attr-defined]
