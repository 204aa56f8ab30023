"""One model for many threads and tasks: turns, cancelling, errors, adapters that come and go."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from time import sleep

import pytest

from cmc_local.errors import ModelClosed, Overloaded, UsageError, WaitedTooLong
from cmc_local.model.queue import Ticket
from cmc_local.model.replies import Piece
from cmc_local.settings import Sampling
from fakes import FakeShift, adapter, always
from gated_models import Made, ask, made, until

__all__ = ["made"]  # the fixture


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_threads_and_tasks_get_their_own_replies(made: Made) -> None:
    found: dict[int, str] = {}

    def sync(i: int) -> None:
        long = Sampling(temperature=0, max_tokens=i + 1)
        found[i] = made.shared.generate(ask(sampling=long)).text

    async def tasks() -> list[str]:
        asks = [ask(sampling=Sampling(temperature=0, max_tokens=i + 1)) for i in range(5)]
        return [one.text for one in await asyncio.gather(*map(made.shared.agenerate, asks))]

    threads = [threading.Thread(target=sync, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    assert asyncio.run(tasks()) == ["a" * (i + 1) for i in range(5)]
    for thread in threads:
        thread.join()
    assert found == {i: "a" * (i + 1) for i in range(5)}
    until(lambda: not made.shared.state.busy)  # its last step ends after the last piece is heard
    state = made.shared.state
    assert (state.active, state.waiting) == (0, 0)


def test_a_stream_that_is_left_frees_its_slot(made: Made) -> None:
    forever = Sampling(temperature=0, max_tokens=400)
    made.base.pause = 0.01
    streams = [made.shared.stream(ask(sampling=forever)) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert made.shared.state.active == 2
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    until(lambda: made.shared.state.active == 0)
    assert made.shared.generate(ask()).text == "aaaa"


def test_a_cancelled_task_frees_its_slot_in_flight_and_in_the_queue(made: Made) -> None:
    async def main() -> None:
        forever = ask(sampling=Sampling(temperature=0, max_tokens=400))
        made.base.gate.clear()
        tasks = [asyncio.create_task(made.shared.agenerate(forever)) for _ in range(4)]
        while made.shared.state.waiting + made.shared.state.active != 4:
            await asyncio.sleep(0.002)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        made.base.gate.set()

    asyncio.run(main())
    until(lambda: not made.shared.state.busy)
    assert made.shared.generate(ask()).text == "aaaa"


def test_a_task_that_is_cancelled_before_it_is_queued_leaves_nothing(made: Made) -> None:
    async def main() -> None:
        task = asyncio.create_task(made.shared.agenerate(ask()))
        await asyncio.sleep(0)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)

    asyncio.run(main())
    until(lambda: not made.shared.state.busy)
    assert (made.shared.state.active, made.shared.state.waiting) == (0, 0)
    assert made.shared.generate(ask()).text == "aaaa"


def test_too_many_are_refused_and_the_patience_ends() -> None:
    made = Made(1, queue=1, patience=0.05)
    forever = ask(sampling=Sampling(temperature=0, max_tokens=400))
    made.base.gate.clear()
    flying = threading.Thread(target=lambda: made.shared.generate(forever))
    flying.start()
    until(lambda: made.shared.state.active == 1)
    refused: list[BaseException] = []

    def wait() -> None:
        try:
            made.shared.generate(ask())
        except WaitedTooLong as error:
            refused.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: made.shared.state.waiting == 1)
    with pytest.raises(Overloaded, match="1 requests are waiting"):
        made.shared.generate(ask())
    sleep(0.06)
    made.base.gate.set()
    waiting.join()
    assert "no slot became free in time" in str(refused[0])
    flying.join()
    made.shared.close()


def test_groups_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(1)
    made.base.gate.clear()
    turns, taken = made.shared._waiting, []
    pop = turns.pop

    def noted() -> Ticket:
        taken.append(pop())
        return taken[-1]

    monkeypatch.setattr(turns, "pop", noted)
    threads = []
    for number, group in enumerate("xaaab"):
        asking = partial(made.shared.generate, ask(), group=group)
        threads.append(threading.Thread(target=asking))
        threads[-1].start()
        until(lambda: made.shared.state.active + made.shared.state.waiting == number + 1)  # noqa: B023
    made.base.gate.set()
    for thread in threads:
        thread.join()
    assert "".join(str(ticket.group) for ticket in taken) == "xabaa"
    made.shared.close()


def test_an_error_ends_those_in_flight_and_no_others(made: Made) -> None:
    made.base.error = MemoryError("no room")
    with pytest.raises(MemoryError):
        made.shared.generate(ask())
    assert made.shared.generate(ask()).text == "aaaa"
    assert made.shared.state.alive


def test_an_adapter_goes_only_when_nothing_is_under_it(made: Made) -> None:
    made.model._loader = lambda folder: adapter(FakeShift(always(0, 0, 5, 0, 0)), name=str(folder))
    assert made.shared.generate(ask()).text == "aaaa"
    assert made.shared.add("says-b", 1.0) == "says-b"
    assert made.shared.alphas == {"says-b": 1.0}
    stream = made.shared.stream(ask(sampling=Sampling(temperature=0, max_tokens=400)))
    made.base.pause = 0.01
    assert next(stream).text == "b"
    assert made.shared.in_use("says-b") == 1
    with pytest.raises(UsageError, match="acts on 1 replies"):
        made.shared.remove("says-b")
    stream.close()  # type: ignore[attr-defined]
    until(lambda: not made.shared.in_use("says-b"))
    made.shared.remove("says-b")
    assert made.shared.generate(ask()).text == "aaaa"
    with pytest.raises(UsageError, match="no adapter 'says-b'"):
        made.shared.remove("says-b")


def test_the_token_that_ends_a_reply_has_its_likelihood_too(made: Made) -> None:
    made.base.rule = always(2, 1, 0, 0, 0)  # weights e^2, e, 1, 1, 1
    (last,) = made.shared.stream(ask(top_logprobs=1))
    assert (last.text, last.finish_reason, last.details) == ("", "stop", ())
    assert last.end is not None and last.end.token == 0
    assert last.end.logprob == pytest.approx(-0.5732, abs=1e-4)  # 2 - log(e^2 + e + 3)


def test_texts_are_embedded_between_steps(made: Made) -> None:
    found = made.shared.embed([[1, 1, 3], [2]])
    assert found.tolist() == [[0, 2, 0, 1, 0], [0, 0, 1, 0, 0]]
    with pytest.raises(UsageError, match="nothing to embed"):
        made.shared.embed([])


def test_closing_ends_what_is_under_way() -> None:
    made = Made(1)
    ended: list[BaseException] = []

    def forever() -> None:
        try:
            made.shared.generate(ask(sampling=Sampling(temperature=0, max_tokens=500)))
        except ModelClosed as error:
            ended.append(error)

    made.base.gate.clear()
    threads = [threading.Thread(target=forever) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: made.shared.state.waiting + made.shared.state.active == 2)
    closing = threading.Thread(target=made.shared.close)
    closing.start()
    until(lambda: made.shared._closing)
    made.base.gate.set()
    for thread in (*threads, closing):
        thread.join(10)
    assert [str(one) for one in ended] == ["the model has been closed: load it again"] * 2
    assert made.base.closed and not made.shared.state.alive
    with pytest.raises(ModelClosed):
        made.shared.generate(ask())
