"""Several base models: which one a name means, and who is loaded, put away, or has to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from cmc_local.errors import GGUFError
from cmc_local.model.shared import SharedModel
from cmc_local.model.steered import SteeredModel
from cmc_local.server import served
from cmc_local.server.errors import Refusal
from cmc_local.server.served import Entry, Models
from fakes import FakeBase, always


class Loads:
    """Makes models of five tokens, and remembers them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.made: list[SharedModel] = []

    def __call__(self) -> SharedModel:
        if self.error is not None:
            raise self.error
        base = FakeBase(always(0, 1, 0, 0, 0))
        self.made.append(SharedModel(SteeredModel(base, base.sampler)))
        return self.made[-1]


def models(*names: str, **settings: Any) -> Models:
    """Models of 100 MB each."""
    entries = [Entry(name=name, load=Loads(), megabytes=100) for name in names]
    return Models(entries, **settings)


def code(act: Callable[[], object]) -> str | None:
    """Why something is refused; None where it is not."""
    try:
        act()
    except Refusal as refused:
        if refused.status == 503:
            assert "Retry-After" in refused.headers
        return refused.code
    return None


async def loaded(some: Models, entry: Entry) -> None:
    """Ask for an entry until it is there."""
    for _ in range(500):
        if code(lambda: some.want(entry)) is None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it is never loaded")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((None, "a"), ("", "a"), ("default", "a"), ("base", "a"), ("base+x@0.5", "a")),
        *(("a", "a"), ("b", "b"), ("b+x", "b"), ("b+x@2", "b"), ("b-long", "b-long")),
    ],
)
def test_a_name_begins_with_its_models(name: str | None, found: str) -> None:
    assert models("a", "b", "b-long").find(name).name == found


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(Refusal, match="no model 'c': there are a, b") as caught:
        models("a", "b").find("c")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert models("a").find("c").name == "a"  # which names.parse refuses with all names


def test_a_model_is_loaded_when_it_is_first_asked_for_and_one_at_a_time() -> None:
    async def ask() -> None:
        some = models("a", "b")
        a, b = some.entries
        assert code(lambda: some.want(a)) == "loading"
        assert (a.state, b.state) == ("loading", "unloaded")
        assert code(lambda: some.want(b)) == "loading"
        assert b.state == "unloaded"  # it comes after the other one
        await loaded(some, a)
        await loaded(some, b)
        assert (a.state, b.state) == ("loaded", "loaded")
        assert a.text_bytes == 64 * 4  # "</s>" is the longest spelling
        some.close()

    asyncio.run(ask())


def test_the_one_that_was_not_used_for_the_longest_time_makes_room() -> None:
    async def ask() -> None:
        some = models("a", "b", "c", megabytes=200)
        a, b, c = some.entries
        await loaded(some, a)
        await loaded(some, b)
        assert code(lambda: some.want(c)) == "no_memory"  # both wait for who asked for them
        for one in (b, a):
            with one.held():
                pass
        await loaded(some, c)
        assert [one.state for one in (a, b, c)] == ["loaded", "unloaded", "loaded"]
        assert isinstance(b.load, Loads)
        assert not b.load.made[0].state.alive
        some.close()

    asyncio.run(ask())


def test_one_that_is_in_use_is_not_put_away() -> None:
    async def ask() -> None:
        some = models("a", "b", megabytes=150)
        a, b = some.entries
        await loaded(some, a)
        with a.held():
            with pytest.raises(Refusal, match="100 of 150 MB") as caught:
                some.want(b)
            assert caught.value.code == "no_memory"
        await loaded(some, b)
        assert a.state == "unloaded"
        some.close()

    asyncio.run(ask())


def test_an_idle_one_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        some = models("a", "b", idle_seconds=60)
        a, b = some.entries
        await loaded(some, a)
        await loaded(some, b)
        now = time.monotonic()
        monkeypatch.setattr(served.time, "monotonic", lambda: now + 61)
        with b.held():
            some.put_away_idle()
            assert (a.state, b.state) == ("unloaded", "loaded")
        some.put_away_idle()
        assert b.state == "loaded"  # it has just been used
        some.close()

    asyncio.run(ask())


def test_one_that_cannot_be_loaded_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        some = models("a", "b")
        a, b = some.entries
        a.load = Loads(GGUFError("a.gguf is damaged"))
        ended: list[Entry] = []
        some.ended = ended.append
        assert code(lambda: some.want(a)) == "loading"
        while not ended:
            await asyncio.sleep(0.01)
        with pytest.raises(Refusal, match=r"could not be loaded: a\.gguf is damaged") as caught:
            some.want(a)
        assert (caught.value.status, caught.value.code) == (503, "failed")
        await loaded(some, b)
        real = time.monotonic
        monkeypatch.setattr(served.time, "monotonic", lambda: real() + 11)
        a.load = Loads()
        await loaded(some, a)  # it is tried again
        some.close()

    asyncio.run(ask())
