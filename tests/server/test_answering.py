"""A client that leaves frees its slot within a second: queued, in the prompt, within the reply."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Message

from cmc_local.engine.timings import Timings
from cmc_local.server.answering import LEFT
from cmc_local.server.bodies import ChatBody
from cmc_local.server.replying import ClientLeft, Replying, Tally, unless_left
from cmc_local.server.requests import chat_asks
from cmc_local.settings import Sampling
from server.conftest import Served
from server.small import Small

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "ab"}]
SLOW = 0.02
"""Seconds for a token."""


def slow(tokens: Sequence[int]) -> Sequence[float]:
    time.sleep(SLOW)
    return (0, 1, 0, 0, 0)


class Visit:
    """One request made by hand, whose client can leave at any time."""

    def __init__(self, small: Small, **body: Any) -> None:
        self.small = small
        self.sent: list[Message] = []
        self._body = json.dumps({"messages": HELLO, "max_tokens": 40, **body}).encode()
        self._read = False
        self._gone = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(),
                 "headers": headers, "query_string": b"", "root_path": "", "scheme": "http",
                 "server": ("localhost", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
        await self.small.app(scope, self._receive, self._send)  # type: ignore[arg-type]

    async def _receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def leave(self) -> float:
        """Seconds until the request is over."""
        begun = time.monotonic()
        self._gone.set()
        await asyncio.wait_for(self.task, 5)
        return time.monotonic() - begun

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def until(what: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_within_the_reply_frees_the_slot(served: Served, stream: bool) -> None:
    small = served(slow)

    async def visit() -> None:
        one = Visit(small, stream=stream, max_tokens=60, n=2)
        if stream:
            await until(lambda: b'"content":"a"' in one.text)
        else:
            await until(lambda: small.model.state.steps > 3)
        assert small.model.state.active == 2
        assert await one.leave() < 0.5
        await until(lambda: not small.model.state.active, 1.0)

    asyncio.run(visit())
    counted = small.client.get("/metrics").text
    status = 200 if stream else LEFT
    assert f'cmc_requests_total{{route="{CHAT}",status="{status}"}} 1.0' in counted


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_queued_leaves_the_queue(served: Served, stream: bool) -> None:
    small = served(slow, parallel=1)

    async def visit() -> None:
        first, second = Visit(small), Visit(small, stream=stream)
        await until(lambda: small.model.state.waiting == 1)
        assert await second.leave() < 0.5
        await until(lambda: small.model.state.waiting == 0, 1.0)
        assert second.sent == [] or second.sent[0]["status"] == LEFT
        await asyncio.wait_for(first.task, 10)
        assert first.sent[0]["status"] == 200  # the one under way is not disturbed

    asyncio.run(visit())


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_within_the_prompt_frees_the_slot(served: Served, stream: bool) -> None:
    reading = threading.Event()

    def slow_prompt(tokens: tuple[int, ...]) -> Sequence[float]:
        reading.set()
        time.sleep(0.3)
        return (0, 1, 0, 0, 0)

    small = served(slow_prompt)

    async def visit() -> None:
        one = Visit(small, stream=stream)
        await until(reading.is_set)
        assert await one.leave() < 0.5
        await until(lambda: not small.model.state.active, 1.0)

    asyncio.run(visit())
    assert small.model.state.steps <= 3


def test_a_stream_that_is_never_begun_is_cancelled_too(served: Served) -> None:
    """Its client leaves between the first piece and the first byte."""
    small = served(slow)

    async def visit() -> None:
        one = Visit(small, stream=True)

        async def leaves(message: Message) -> None:
            one._gone.set()
            raise OSError("the connection is closed")

        one._send = leaves  # type: ignore[method-assign]
        await asyncio.wait_for(one.task, 5)
        await until(lambda: not small.model.state.active, 1.0)

    asyncio.run(visit())
    assert small.model.state.active == small.model.state.waiting == 0


def test_work_is_cancelled_when_its_client_leaves() -> None:
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            cancelled.append(True)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientLeft):
        asyncio.run(unless_left(receive, work()))
    assert cancelled == [True]


def test_work_that_ends_or_fails_is_not_disturbed_by_who_listens() -> None:
    async def never() -> Message:
        await asyncio.sleep(10)
        raise AssertionError

    async def gives() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("so")

    assert asyncio.run(unless_left(never, gives())) == 7
    with pytest.raises(ValueError, match="so"):
        asyncio.run(unless_left(never, fails()))


@pytest.mark.parametrize(("tokens", "pieces"), [(3, ["a", "a", "a", ""]), (30, ["a" * 30])])
def test_pieces_are_joined_where_many_came_meanwhile(
    served: Served, tokens: int, pieces: list[str]
) -> None:
    small = served(sampling=Sampling(temperature=0, max_tokens=tokens))

    async def late() -> list[str]:
        entry = small.service.find(None)
        asks = chat_asks(ChatBody(messages=HELLO), small.service.setting(entry))  # type: ignore[arg-type]
        replying = Replying(small.service, entry, asks, n=1, param="messages")
        await until(lambda: small.model.state.steps >= tokens and not small.model.state.active)
        await asyncio.sleep(0.05)
        found = []
        while (came := await replying.next()) is not None:
            found.append(came)
        assert [choice for choice, _ in found] == [0] * len(found)
        assert sum(len(piece.tokens) for _, piece in found) == tokens
        assert [one.finish_reason for _, one in found] == [None] * (len(found) - 1) + ["length"]
        return [piece.text for _, piece in found]

    assert asyncio.run(late()) == pieces


def test_a_prompt_counts_once_however_many_choices_it_has() -> None:
    tally = Tally(n=2, choices=4)
    for choice, (prompt, reused, generated) in enumerate(
        [(5, 0, 1), (5, 4, 2), (7, 7, 3), (7, 6, 4)]
    ):
        tally.timings[choice] = Timings(
            prompt_tokens=prompt, reused_tokens=reused, generated_tokens=generated
        )
    assert tally.usage() == {
        "prompt_tokens": 12,
        "completion_tokens": 10,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert tally.speeds() is None
