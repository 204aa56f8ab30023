"""A storm on one shared model: threads, tasks, cancellations, errors, adapters that come and go.

Nothing is said about the order of things, only about their end: every ask ends once, whoever was
not disturbed hears what a model of its own would have said, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from time import monotonic, sleep
from typing import Any

import pytest

from cmc_local.errors import ModelClosed, Overloaded, UsageError
from cmc_local.model import shared as shared_module
from cmc_local.model.batching import Batch
from cmc_local.model.queue import Heard, Ticket
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.model.shared import SharedModel
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from fakes import FakeBase, FakeShift, GreedySampler, Rule, adapter

N_CTX = 96
SLOTS = 3
CHOOSY = 13
"""The seed of asks whose chooser finds nothing at its third token."""


def rule(seed: int) -> Rule:
    return lambda seen: tuple(hash((seed, i, *seen[-5:])) % 97 / 20 for i in range(5))


class Weather(FakeBase):
    """Takes its time now and then, and fails once in a while."""

    def __init__(self, draw: random.Random, *, errors: float, truncates: bool) -> None:
        super().__init__(rule(1), n_ctx=N_CTX, truncates=truncates)
        self.draw, self.errors = draw, errors

    def decode_spans(self, spans):  # type: ignore[no-untyped-def]
        if self.draw.random() < 0.2:
            sleep(self.draw.random() * 1e-3)
        if self.draw.random() < self.errors:
            for span in spans:  # half a decode
                self.cache.setdefault(span.sequence, []).append(0)
            raise RuntimeError("no room")
        super().decode_spans(spans)


class Chooser(GreedySampler):
    """Greedy; knows whether it was used when it was closed."""

    def __init__(self, base: FakeBase, sampling: Sampling) -> None:
        super().__init__(base)
        self.left = 2 if sampling.seed == CHOOSY else 10**6
        self.closed = self.abused = False

    def sample(self, i: int = -1) -> int:
        self.abused |= self.closed
        if not self.left:
            raise UsageError("the grammar allows none of the model's tokens")
        self.left -= 1
        return super().sample(i)

    def close(self) -> None:
        self.closed = True


class Noted(Ticket):
    """Knows what it ended in, and how often."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.ends: list[object] = []

    def tell(self, heard: Heard) -> None:
        if isinstance(heard, Exception) or heard.finish_reason is not None:
            self.ends.append(getattr(heard, "finish_reason", heard))
        super().tell(heard)


def an_adapter(name: str) -> LoadedAdapter:
    """`one` and `two` say different things, and all others what `two` says."""
    seed = 2 if name == "one" else 3
    return adapter(FakeShift(rule(seed), context=48), name=name, mid_token="join")


def an_ask(draw: random.Random, *names: str) -> Ask:
    text = "abba\n" * draw.choice((0, 0, 8))  # a beginning that is worth sharing
    text += "".join(draw.choices(("a", "b", "ab", "\n", "abab\n"), k=draw.choice((1, 4, 12, 25))))
    raw, echo = draw.random() < 0.5, draw.random() < 0.3
    return Ask(
        prompt=text if raw else [{"role": "user", "content": text}],
        sampling=Sampling(
            temperature=0,
            seed=CHOOSY if draw.random() < 0.05 else 1,
            max_tokens=0 if raw and echo and draw.random() < 0.3 else draw.choice((1, 3, 12, 60)),
            stop=draw.choice(((), ("ba",), ("\n\n", "bbb"))),
        ),
        alphas={"one": draw.choice((0.0, 1.0)), "two": draw.choice((0.0, -0.5))}
        | dict.fromkeys(names, 1.0),
        top_logprobs=draw.choice((None, 0, 2)),
        plain=draw.random() < 0.5,
        echo=raw and echo,
    )


@dataclass
class Reply:
    """What was heard of one ask."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    details: tuple[Any, ...] = ()
    echoed: tuple[Any, ...] = ()
    reason: str | None = None

    def hear(self, piece: Piece) -> None:
        assert self.reason is None, "a piece after the last one"
        if piece.echo:
            self.echoed += (piece.text, piece.tokens, piece.details)
        else:
            self.text += piece.text
            self.tokens += piece.tokens
            self.details += piece.details
        assert [one.token for one in piece.details] in ([], list(piece.tokens))
        self.reason = piece.finish_reason


@dataclass
class Told:
    """What a whole storm came to."""

    replies: list[tuple[Ask, Reply]] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    def error(self, error: Exception) -> None:
        assert isinstance(error, Overloaded | UsageError | ModelClosed) or "no room" in str(error)
        self.other[type(error).__name__] += 1


class Storm:
    """Who asks, and what happens meanwhile."""

    def __init__(self, seed: int, *, errors: float, truncates: bool = True) -> None:
        self.draw = random.Random(seed)
        self.base = Weather(random.Random(seed), errors=errors, truncates=truncates)
        self.choosers: list[Chooser] = []
        self.batches: list[Batch] = []
        self.told = Told()
        self.wrong: list[BaseException] = []
        model = SteeredModel(
            self.base,
            self.chooser,
            loader=lambda folder: an_adapter(str(folder)),
            limits=Limits(parallel=SLOTS, batch=24),
            drafts=7,
        )
        model.add("one")
        model.add("two")
        make, self.model = model.batch, model
        model.batch = lambda **how: self.keep(make(**how))  # type: ignore[method-assign]
        self.shared = SharedModel(model, queue=6, patience=0.05)

    def chooser(self, sampling: Sampling) -> Chooser:
        self.choosers.append(Chooser(self.base, sampling))
        return self.choosers[-1]

    def keep(self, batch: Batch) -> Batch:
        self.batches.append(batch)
        return batch

    def thread(self, seed: int, asks: int) -> None:
        """Streams, some of which it leaves."""
        draw = random.Random(seed)
        for _ in range(asks):
            ask, reply = an_ask(draw), Reply()
            leave = draw.randrange(4) if draw.random() < 0.3 else None
            stream = self.shared.stream(ask, group=draw.choice((None, "a", "b")))
            try:
                for number, piece in enumerate(stream):
                    reply.hear(piece)
                    if number == leave:
                        stream.close()  # type: ignore[attr-defined]
                        self.told.other["left"] += 1
                        break
                else:
                    self.told.replies.append((ask, reply))
            except Exception as error:
                self.told.error(error)
                sleep(draw.random() * 2e-3)

    async def task(self, draw: random.Random) -> None:
        ask, reply = an_ask(draw), Reply()
        try:
            async for piece in self.shared.astream(ask):
                reply.hear(piece)
            self.told.replies.append((ask, reply))
        except asyncio.CancelledError:
            self.told.other["cancelled"] += 1
        except Exception as error:
            self.told.error(error)

    async def tasks(self, seed: int, rounds: int) -> None:
        """Several at once, some of which are cancelled at any moment."""
        draw = random.Random(seed)
        for _ in range(rounds):
            tasks = [asyncio.create_task(self.task(draw)) for _ in range(draw.randrange(1, 6))]
            for task in tasks:
                if draw.random() < 0.4:
                    await asyncio.sleep(draw.choice((0, 0, draw.random() * 4e-3)))
                    task.cancel()
            await asyncio.gather(*tasks)

    def loop(self, seed: int, rounds: int) -> None:
        asyncio.run(self.tasks(seed, rounds))

    def comings_and_goings(self, seed: int, times: int) -> None:
        """Adapters that act on a few replies of their own, then go."""
        draw = random.Random(seed)
        for number in range(times):
            name = self.shared.add(f"guest-{seed}-{number}", 0.0)
            for _ in range(draw.randrange(3)):
                stream = self.shared.stream(an_ask(draw, name))
                try:
                    next(stream)
                except Exception as error:
                    self.told.error(error)
                stream.close()  # type: ignore[attr-defined]
            while True:
                try:
                    self.shared.remove(name)
                    break
                except UsageError as error:
                    assert "wait until they end" in str(error)
                    sleep(1e-3)
            assert name not in self.shared.alphas
            assert self.shared.embed([[1, 1], [2]]).tolist() == [[0, 2, 0, 0, 0], [0, 0, 1, 0, 0]]

    def blow(self, seed: int, close_after: float | None = None) -> None:
        """All of it at once, to its end; the model is closed after so many seconds."""
        works = [
            *((self.thread, seed + i, 40) for i in range(4)),
            *((self.loop, seed + i, 20) for i in (10, 11)),
            *((self.comings_and_goings, seed + i, 15) for i in (20, 21)),
        ]

        def caught(work: Any, *args: int) -> None:
            try:
                work(*args)
            except ModelClosed as error:
                self.told.error(error)
            except BaseException as error:
                self.wrong.append(error)

        threads = [threading.Thread(target=caught, args=work) for work in works]
        for thread in threads:
            thread.start()
        if close_after is not None:
            sleep(close_after)
            self.shared.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "somebody waits for ever"
        if self.wrong:
            raise self.wrong[0]


@cache
def model_of_its_own() -> tuple[SteeredModel, FakeBase]:
    base = FakeBase(rule(1), n_ctx=N_CTX)
    model = SteeredModel(base, lambda sampling: Chooser(base, sampling))
    for name in ("one", "two"):
        model.attach(an_adapter(name))
    return model, base


def alone(ask: Ask) -> Reply:
    """What a model of one slot says, without guesses, asked nothing else meanwhile."""
    model, _ = model_of_its_own()
    reply = Reply()
    batch = model.batch()
    batch.submit(model.request(ask))
    while batch.active:
        for _, piece in batch.step():
            assert isinstance(piece, Piece)
            reply.hear(piece)
    return reply


def rounded(details: tuple[Any, ...]) -> list[Any]:
    def short(number: float | None) -> float | None:
        return None if number is None else round(number, 5)

    return [
        (one.token, short(one.logprob), short(one.plain_logprob), [t for t, _ in one.top])
        for one in details
    ]


def until(true: Any, seconds: float = 10.0) -> None:
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "it never came true"
        sleep(0.002)


@pytest.fixture
def tickets(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """Every ticket that is made."""
    made: list[Noted] = []

    def noted(*args: Any, **more: Any) -> Noted:
        made.append(Noted(*args, **more))
        return made[-1]

    monkeypatch.setattr(shared_module, "Ticket", noted)
    return made


def check_ends(storm: Storm, tickets: list[Noted]) -> None:
    """Every ask that was queued ended once, and none that was not; nothing is held any more."""
    assert [one for one in tickets if len(one.ends) != one.queued] == []
    assert all(one.closed for one in storm.choosers)
    assert not any(one.abused for one in storm.choosers)
    (batch,) = storm.batches
    assert (batch.free, batch.active) == (SLOTS, 0)
    assert all(slot.run is None for slot in storm.model._slots)


def check_replies(replies: list[tuple[Ask, Reply]]) -> None:
    """Whoever heard the last piece heard what a model of its own would have said."""
    for ask, reply in replies:
        own = alone(ask)
        said = reply.text, reply.tokens, reply.reason
        assert said == (own.text, own.tokens, own.reason)
        assert rounded(reply.details) == rounded(own.details)
        assert reply.echoed[:2] == own.echoed[:2]
        assert list(map(rounded, reply.echoed[2:])) == list(map(rounded, own.echoed[2:]))


@pytest.mark.parametrize(
    ("seed", "errors", "truncates"),
    [(100, 0.0, True), (200, 0.01, True), (300, 0.05, True), (350, 0.01, False)],
)
def test_a_storm_leaves_nothing_behind(
    seed: int, errors: float, truncates: bool, tickets: list[Noted]
) -> None:
    before = set(threading.enumerate())
    storm = Storm(seed, errors=errors, truncates=truncates)
    storm.blow(seed)
    until(lambda: not storm.shared.state.busy)
    state = storm.shared.state
    assert (state.active, state.waiting, state.alive) == (0, 0, True)
    assert storm.shared.alphas.keys() == {"one", "two"}
    check_ends(storm, tickets)
    assert ["cancelled"] in [one.ends for one in tickets]  # some were left in mid-reply
    storm.shared.close()
    assert set(threading.enumerate()) <= before
    assert len(storm.told.replies) >= 40, storm.told.other
    check_replies(storm.told.replies)


@pytest.mark.parametrize("seed", [400, 500])
def test_closing_in_the_storm_ends_all_of_it(seed: int, tickets: list[Noted]) -> None:
    before = set(threading.enumerate())
    storm = Storm(seed, errors=0.01)
    storm.blow(seed, close_after=0.2)
    assert storm.told.other["ModelClosed"]
    assert set(threading.enumerate()) <= before
    check_ends(storm, tickets)
    check_replies(storm.told.replies)
