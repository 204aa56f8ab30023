"""What a measurement is made of: its settings, its texts, and that no arm writes another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.base import library as base_library
from cmc_local.bench import session
from cmc_local.bench.arms import KINDS, Place, Sample
from cmc_local.bench.session import Passages, Settings
from cmc_local.errors import UsageError

GGUF = Path("any.gguf")
ALL = tuple(KINDS)


def test_arms_become_kinds_in_the_tables_order() -> None:
    adapter = Path("adapter")
    settings = Settings(gguf=GGUF, adapter=adapter, arms=("speculated", "steered", "plain"))
    assert settings.kinds == ("plain", "steered", "plain+guesses", "steered+guesses")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="no arm 'fast': there are plain"):
        Settings(gguf=GGUF, arms=("fast",))
    with pytest.raises(UsageError, match="steered, naive need"):
        Settings(gguf=GGUF, arms=("plain", "steered", "naive"))
    assert Settings(gguf=GGUF, arms=("stock", "speculated")).kinds == (
        "alone",
        "stock",
        "plain+guesses",
    )


def test_passages_of_the_bundled_texts(tiny_gguf: Path) -> None:
    settings = Settings(
        gguf=tiny_gguf, adapter=GGUF, tokens=5, contexts=(30, 10), parallel=3, arms=ALL
    )
    found = Passages.of(settings)
    assert (found.main.name, found.main.context) == ("prose", 30)
    (short,) = found.lengths
    assert (short.context, short.reply) == (10, found.main.reply)
    assert [one.name for one in found.repeating] == ["editing", "extraction"]
    assert len({found.main.prompt, *(one.prompt for one in found.many)}) == 4
    every = (found.main, *found.lengths, *found.repeating, *found.many)
    assert {len(one.reply) for one in every} == {6}  # one is not timed
    longest = max(one.context for one in every)
    assert found.context % 256 == 0
    assert longest + 6 + 16 <= found.context < longest + 6 + 16 + 256


def test_an_arm_that_writes_something_else_is_an_error(tiny_gguf: Path) -> None:
    settings = Settings(gguf=tiny_gguf, adapter=GGUF, tokens=2, contexts=(30,), parallel=2)
    found = Passages.of(settings)
    good = Sample(1.0, 2, (found.main.reply,))
    session._check(found, Place("plain", "prose", 30), [good, good])
    many = Sample(1.0, 4, tuple(one.reply for one in found.many))
    session._check(found, Place("steered", "prose", 30, 2), [many])
    for bad in (Sample(1.0, 2, ((1, 2, 3),)), Sample(1.0, 2, ()), many):
        with pytest.raises(RuntimeError, match="plain, prose after 30: another text"):
            session._check(found, Place("plain", "prose", 30), [good, bad])


def test_rivals_that_would_crash_are_left_out_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(gguf=GGUF, adapter=GGUF, arms=("plain", "stock", "naive"))
    monkeypatch.setattr(base_library, "has_risky_amx", lambda: False)
    assert session._without_crashes(settings) == (settings, ())
    monkeypatch.setattr(base_library, "has_risky_amx", lambda: True)
    left, (told,) = session._without_crashes(settings)
    assert left.arms == ("plain",)
    assert told.startswith("stock and naive: left out, this build of llama.cpp can crash")
    with pytest.raises(UsageError, match="stock: left out"):
        session._without_crashes(Settings(gguf=GGUF, arms=("stock",)))
