"""How a shared model ends things: what breaks, closes, is cancelled or comes at a bad moment."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from cmc_local.errors import ModelClosed, Overloaded, UsageError
from cmc_local.model.queue import Ticket
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.settings import Sampling
from fakes import FakeShift, GreedySampler, adapter, always
from gated_models import Made, ask, made, until

__all__ = ["made"]  # the fixture

FOREVER = Sampling(temperature=0, max_tokens=400)


def later(work: Any, *args: Any, **more: Any) -> Future[Any]:
    """The work in a thread of its own; asking for its result does not wait for ever."""
    with_thread = ThreadPoolExecutor(1)
    try:
        return with_thread.submit(work, *args, **more)
    finally:
        with_thread.shutdown(wait=False)


class Slow:
    """Makes samplers, each once its gate is open."""

    def __init__(self, one: Made) -> None:
        self.base, self.made = one.base, list[GreedySampler]()
        self.gate, self.reached = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        self.closed = 0
        one.model._make_sampler = self

    def __call__(self, sampling: Sampling) -> GreedySampler:
        self.threads.add(threading.get_ident())
        self.reached.set()
        assert self.gate.wait(20)
        self.made.append(GreedySampler(self.base))
        self.made[-1].close = self.close  # type: ignore[method-assign]
        return self.made[-1]

    def close(self) -> None:
        self.closed += 1


# --- an ask that is left while it is prepared ------------------------------------------------


def left_in_preparation(one: Made, slow: Slow, meanwhile: Any = lambda: None) -> None:
    """A task is cancelled while its sampler is being made; then that goes on."""

    async def main() -> None:
        task = asyncio.create_task(one.shared.agenerate(ask()))
        while not slow.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    meanwhile()
    slow.gate.set()
    until(lambda: slow.closed)


def test_a_task_cancelled_while_its_ask_is_prepared_is_never_queued(made: Made) -> None:
    slow, queued = Slow(made), []
    made.shared._waiting.put = lambda *item: queued.append(item)  # type: ignore[method-assign]
    left_in_preparation(made, slow)
    assert (len(slow.made), queued) == (1, [])


def test_its_sampler_is_closed_even_if_it_would_have_been_refused(made: Made) -> None:
    slow = Slow(made)
    left_in_preparation(made, slow, lambda: setattr(made.shared, "_refusal", "no more"))
    assert slow.closed


def test_all_asks_are_prepared_in_one_thread(made: Made) -> None:
    slow = Slow(made)
    slow.gate.set()

    async def main() -> None:
        await asyncio.gather(*(made.shared.agenerate(ask()) for _ in range(5)))

    replies = [later(made.shared.generate, ask()) for _ in range(3)]
    asyncio.run(main())
    assert [reply.result(10).text for reply in replies] == ["aaaa"] * 3
    assert len(slow.threads) == 1


def test_an_adapter_does_not_go_while_an_ask_is_prepared_with_it(made: Made) -> None:
    made.model._loader = lambda folder: adapter(FakeShift(always(0, 0, 5, 0, 0)), name=str(folder))
    made.shared.add("says-b")
    slow = Slow(made)
    reply = later(made.shared.generate, ask(sampling=FOREVER))
    assert slow.reached.wait(10)
    removed = later(made.shared.remove, "says-b")
    with pytest.raises(TimeoutError):
        removed.result(0.05)
    made.base.gate.clear()  # it is queued, and goes no further
    slow.gate.set()
    until(lambda: made.shared.state.active)
    made.base.gate.set()
    with pytest.raises(UsageError, match="acts on 1 replies"):
        removed.result(10)
    assert set(reply.result(10).text) == {"b"}


def test_a_model_is_not_freed_while_an_ask_is_prepared() -> None:
    one = Made()
    slow = Slow(one)
    reply = later(one.shared.generate, ask())
    assert slow.reached.wait(10)
    closing = later(one.shared.close)
    with pytest.raises(TimeoutError):
        closing.result(0.05)
    assert not one.base.closed
    slow.gate.set()
    closing.result(10)
    assert one.base.closed and slow.closed
    with pytest.raises(ModelClosed):
        reply.result(10)
    with pytest.raises(ModelClosed):
        one.shared.tokenize("b")


# --- the worker breaks down ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_waits_learns_of_a_breakdown() -> None:
    one = Made(1)
    one.base.gate.clear()
    replies = [later(one.shared.generate, ask(sampling=FOREVER)) for _ in range(2)]
    until(lambda: (one.shared.state.active, one.shared.state.waiting) == (1, 1))
    order = later(one.shared.embed, [[1]])
    until(lambda: one.shared._orders)

    def broken() -> object:
        raise KeyError("a bug")

    one.shared._waiting.pop = broken  # type: ignore[method-assign]
    one.base.error = MemoryError("no room")  # ends the first, so that a slot is free
    one.base.gate.set()
    with pytest.raises(MemoryError):
        replies[0].result(10)
    with pytest.raises(ModelClosed, match=r"broke down \(KeyError\('a bug'\)\): load it again"):
        replies[1].result(10)
    assert order.result(10).shape == (1, 5)
    until(lambda: not one.shared._worker.is_alive())
    assert not one.shared.state.alive
    for call in (
        partial(one.shared.generate, ask()),
        partial(one.shared.embed, [[1]]),
        partial(one.shared.tokenize, "b"),
    ):
        with pytest.raises(ModelClosed, match="broke down"):
            later(call).result(10)
    one.shared.close()
    assert one.base.closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_order_learns_of_a_breakdown_too(made: Made) -> None:
    made.base.gate.clear()
    reply = later(made.shared.generate, ask(sampling=FOREVER))
    until(lambda: made.shared.state.active)

    def broken() -> bool:
        raise KeyError("a bug")

    made.shared._wait = broken  # type: ignore[method-assign]
    order = later(made.shared.embed, [[1]])
    until(lambda: made.shared._orders)
    made.base.gate.set()
    for one in (reply, order):
        with pytest.raises(ModelClosed, match="broke down"):
            one.result(10)


@pytest.mark.parametrize("kind", [SystemExit, ValueError])
def test_an_order_that_fails_does_so_alone(
    made: Made, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(tokens: object) -> object:
        raise kind("no")

    monkeypatch.setattr(made.base, "embed", failing)
    with pytest.raises(kind):
        later(made.shared.embed, [[1]]).result(10)
    assert made.shared.generate(ask()).text == "aaaa"


def test_an_order_that_waits_when_the_model_is_closed_does_not_hang() -> None:
    one = Made()
    one.base.gate.clear()
    reply = later(one.shared.generate, ask())
    until(lambda: one.shared.state.active)
    order = later(one.shared.embed, [[1], [2]])
    until(lambda: one.shared._orders)
    closing = later(one.shared.close)
    until(lambda: one.shared._closing)
    one.base.gate.set()
    closing.result(10)
    for end in (reply, order):
        with pytest.raises(ModelClosed):
            end.result(10)


# --- who cannot hear -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_whoever_cannot_hear_is_dropped_and_harms_nobody(made: Made, kind: type[Exception]) -> None:
    heard: list[object] = []

    def hear(piece: object) -> None:
        heard.append(piece)
        raise kind("the loop has ended")

    made.base.pause = 0.002
    made.shared._submit(ask(sampling=FOREVER), Ticket(hear, "deaf")).result(10)
    assert made.shared.generate(ask()).text == "aaaa"
    until(lambda: not made.shared.state.busy)
    assert len(heard) < 100  # not all 400
    last = heard[-1]
    assert isinstance(last, Piece) and last.finish_reason == "cancelled"


def test_a_loop_that_ends_without_a_word_frees_its_slot(made: Made) -> None:
    made.base.pause = 0.002
    loop = asyncio.new_event_loop()
    stream = made.shared.astream(ask(sampling=FOREVER))
    loop.run_until_complete(anext(stream))
    loop.close()
    until(lambda: not made.shared.state.busy)
    assert made.shared.state.alive


# --- room and turns --------------------------------------------------------------------------


def test_an_ask_for_which_a_slot_is_free_does_not_count_as_waiting() -> None:
    one, rested = Made(3, queue=1), threading.Event()
    assert one.shared.generate(ask()).text == "aaaa"
    order = later(one.shared._order, lambda: rested.wait(20))  # the worker is busy with it
    until(lambda: not one.shared._orders)
    replies = []
    for number in range(4):  # three slots are free, and one may wait
        replies.append(later(one.shared.generate, ask()))
        until(lambda: one.shared.state.waiting == number + 1)  # noqa: B023
    with pytest.raises(Overloaded):
        one.shared.generate(ask())
    rested.set()
    assert order.result(10)
    assert [reply.result(10).text for reply in replies] == ["aaaa"] * 4
    one.shared.close()


def test_orders_and_steps_take_turns(made: Made) -> None:
    made.base.gate.clear()
    stream = later(made.shared.generate, ask(sampling=FOREVER))
    until(lambda: made.shared.state.active)
    before = made.shared.state.steps
    seen: list[int] = []
    made.base.embed = lambda tokens: seen.append(len(made.base.decoded))  # type: ignore
    orders = [later(made.shared._order, partial(made.base.embed, [1])) for _ in range(3)]
    until(lambda: len(made.shared._orders) == 3)
    made.base.gate.set()
    for order in orders:
        order.result(10)
    assert seen[0] < seen[1] < seen[2]
    assert made.shared.state.steps - before >= 5  # orders count as well: it is not stuck
    made.base.gate.set()
    assert stream.result(20).text == "a" * 400


def test_only_embedding_counts_as_moving(made: Made) -> None:
    before = made.shared.state.steps
    made.shared.embed([[1], [2]])
    assert made.shared.state.steps == before + 2


def test_an_alpha_that_is_no_number_leaves_the_model_as_it_was(made: Made) -> None:
    made.model._loader = lambda folder: adapter(FakeShift(always(0, 0, 5, 0, 0)), name=str(folder))
    with pytest.raises(UsageError, match="alpha must be a finite number"):
        made.shared.add("says-b", float("nan"))
    assert made.shared.alphas == {}
    assert made.shared.generate(Ask(prompt="b", sampling=Sampling(max_tokens=2))).text == "aa"
