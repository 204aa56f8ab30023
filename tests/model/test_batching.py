"""Requests under way: slots, cancelling, and replies that equal those one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.batching import Batch
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Echo, Request
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.steer.steering import ActiveAdapter
from cmc_local.text.vocabulary import Role
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, GreedySampler, adapter, always

SAYS_A = always(0, 1, 0, 0, 0)


class Samplers:
    """Makes greedy samplers and counts those that are open."""

    def __init__(self, base: FakeBase) -> None:
        self.base = base
        self.open = 0

    def __call__(self, sampling: Sampling) -> GreedySampler:
        makes = self

        class Sampler(GreedySampler):
            def close(self) -> None:
                makes.open -= 1

        self.open += 1
        return Sampler(self.base)


def batch_of(base: FakeBase, slots: int, **engine: object) -> tuple[Batch, Samplers]:
    samplers = Samplers(base)
    places = [Slot(i) for i in range(slots)]
    return Batch(Engine(base, **engine), places, samplers), samplers  # type: ignore[arg-type]


def request(*tokens: int, most: int = 3, active: tuple[ActiveAdapter, ...] = ()) -> Request:
    return Request(tokens=tokens, active=active, sampling=Sampling(temperature=0, max_tokens=most))


def run_out(batch: Batch) -> dict[int, list[Piece]]:
    found: dict[int, list[Piece]] = {}
    for _ in range(200):
        if not batch.active:
            return found
        for number, piece in batch.step():
            found.setdefault(number, []).append(piece)
    raise AssertionError("the batch never ends")


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_request_takes_a_slot_or_is_refused() -> None:
    base = FakeBase(SAYS_A)
    batch, samplers = batch_of(base, 2)
    numbers = [batch.submit(request(B, most=most)) for most in (1, 3)]
    assert (numbers, batch.free, batch.active) == ([0, 1], 0, 2)
    with pytest.raises(UsageError, match="no slot is free"):
        batch.submit(request(B))
    batch.step()
    assert (batch.free, batch.active) == (1, 1)  # the first is over already
    assert batch.submit(request(B, most=2)) == 2
    found = run_out(batch)
    assert {n: found[n][-1].finish_reason for n in found} == {1: "length", 2: "length"}
    assert samplers.open == 0


def test_a_free_slot_that_remembers_the_prompt_is_preferred() -> None:
    base = FakeBase(SAYS_A)
    batch, _ = batch_of(base, 3)
    for prompt in ((B, B, B), (NEWLINE, B, NEWLINE), (A, A, A)):
        batch.submit(request(*prompt))
    run_out(batch)
    base.decoded.clear()
    batch.submit(request(NEWLINE, B, NEWLINE, A, A, AB))
    found = run_out(batch)
    assert base.decoded[0] == (AB,)
    timings = found[3][-1].timings
    assert timings is not None and timings.reused_tokens == 5


def test_a_request_is_cancelled_before_its_first_step_and_after_it() -> None:
    base = FakeBase(SAYS_A)
    batch, samplers = batch_of(base, 2)
    begun = batch.submit(request(B, most=50))
    batch.step()
    new = batch.submit(request(B, most=50))
    for number in (begun, new, 99):
        batch.cancel(number)
    last = dict(batch.step())
    assert {number: piece.finish_reason for number, piece in last.items()} == {
        begun: "cancelled",
        new: "cancelled",
    }
    assert all(piece.timings is not None for piece in last.values())
    assert (batch.active, batch.free, samplers.open) == (0, 2, 0)
    assert base.decoded == [(B,)]
    batch.submit(request(B, most=1))
    assert text(run_out(batch)[2]) == "a"


def test_a_full_context_ends_a_reply_and_not_the_others() -> None:
    base = FakeBase(SAYS_A, n_ctx=6)
    batch, _ = batch_of(base, 2)
    batch.submit(request(B, B, B, most=50))
    batch.submit(request(B, most=50))
    found = run_out(batch)
    assert [text(found[n]) for n in (0, 1)] == ["a" * 4, "a" * 6]
    assert {found[n][-1].finish_reason for n in found} == {"length"}


def test_an_error_ends_all_and_leaves_the_batch_usable() -> None:
    base, source = FakeBase(SAYS_A), FakeShift(always(0, 0, 2, 0, 0))
    batch, samplers = batch_of(base, 2)
    steers = adapter(source)
    active = (steers.active(1.0, steers.prompt([{"role": "user", "content": "a"}])),)
    batch.submit(request(B, most=9, active=active))
    batch.submit(request(B, most=9))
    batch.step()
    source.error = MemoryError("no room")
    with pytest.raises(MemoryError):
        batch.step()
    assert (batch.active, batch.free, samplers.open) == (0, 2, 0)
    source.error = None
    batch.submit(request(B, most=2, active=active))
    assert text(run_out(batch)[2]) == "bb"


def test_a_prompt_is_read_beside_replies_and_then_answered() -> None:
    base, source = FakeBase(SAYS_A), FakeShift(always(0, 0, 2, 0, 0))
    batch, samplers = batch_of(base, 2)
    steers = adapter(source)
    # The delta reads the whole text as its answer: "b" before what is judged, "bab" before more.
    judged = steers.active(1.0, steers.verbatim("\n"), given=b"b")
    sampling = Sampling(temperature=0, max_tokens=2)
    reading = Request(
        tokens=(B, AB),
        active=(replace(judged, given=b"bab"),),
        sampling=sampling,
        top_logprobs=1,
        echo=Echo("bab", 1, (judged,)),
    )
    batch.submit(request(B, most=3))
    batch.submit(reading)
    found = run_out(batch)
    assert text(found[0]) == "aaa"
    echoed, *reply = found[1]
    assert (echoed.echo, echoed.text, echoed.tokens) == (True, "bab", (B, AB))
    # Weights after the shift: 1, e, e^2, 1, 1; "ab" is one of the ones.
    assert echoed.details[1].logprob == pytest.approx(-np.log(3 + np.e + np.e**2), abs=1e-6)
    assert echoed.details[1].top[0][0] == B
    assert text(reply) == "bb"
    assert source.streams[1] == [NEWLINE, B, AB, B]  # the last b is not asked what follows it
    assert samplers.open == 0


def test_a_request_is_cancelled_while_its_prompt_is_read() -> None:
    batch, samplers = batch_of(FakeBase(SAYS_A, n_ctx=400), 1)
    tokens = (B,) * 300  # three chunks
    read = Request(tokens=tokens, sampling=Sampling(max_tokens=0), top_logprobs=0, echo=Echo("", 1))
    number = batch.submit(read)
    batch.step()
    batch.cancel(number)
    assert [piece.finish_reason for _, piece in batch.step()] == ["cancelled"]  # type: ignore[union-attr]
    assert (batch.active, batch.free, samplers.open) == (0, 1, 0)


def test_a_prompt_without_likelihoods_comes_back_and_is_not_read() -> None:
    base = FakeBase(SAYS_A)
    batch, samplers = batch_of(base, 1)
    tokens = (B,) * 20
    found = {}
    for most in (0, 1):
        sampling = Sampling(temperature=0, max_tokens=most)
        batch.submit(Request(tokens=tokens, sampling=sampling, echo=Echo("told", 1)))
        found |= run_out(batch)
    for pieces in found.values():
        assert (pieces[0].echo, pieces[0].text, pieces[0].details) == (True, "told", ())
    assert text(found[1][1:]) == "a"
    assert base.decoded == [tokens]  # once, for the reply
    assert (batch.free, samplers.open) == (1, 0)


def test_what_was_read_counts_as_the_prompts_cost() -> None:
    base = FakeBase(SAYS_A)
    batch, _ = batch_of(base, 1)
    sampling = Sampling(temperature=0, max_tokens=1)
    for number in range(2):  # all of it is decoded each time, for its likelihoods
        batch.submit(
            Request(tokens=(B, A, B), sampling=sampling, top_logprobs=0, echo=Echo("bab", 1))
        )
        timings = run_out(batch)[number][-1].timings
        assert timings is not None
        assert (timings.prompt_tokens, timings.reused_tokens) == (3, 0)
        assert 0 < timings.prompt_seconds <= timings.total_seconds


def test_a_request_that_cannot_begin_leaves_nothing_behind() -> None:
    base = FakeBase(SAYS_A)
    batch, samplers = batch_of(base, 2)
    batch.submit(request(B, most=9))
    batch.step()
    batch.submit(request())  # no tokens at all
    with pytest.raises(UsageError, match="the prompt is empty"):
        batch.step()
    assert (batch.active, batch.free, samplers.open) == (0, 2, 0)
    number = batch.submit(request(B))
    assert text(run_out(batch)[number]) == "aaa"


# --- through SteeredModel --------------------------------------------------------------------


def rule(seen: tuple[int, ...]) -> list[float]:
    return [float(hash((*seen[-6:], i)) % 97) / 20 for i in range(5)]


def model(parallel: int, *adapters: LoadedAdapter) -> SteeredModel:
    base = FakeBase(rule, n_ctx=64)
    made = SteeredModel(base, base.sampler, limits=Limits(parallel=parallel))
    for one in adapters:
        made.attach(one)
    return made


@pytest.mark.parametrize("parallel", [1, 2, 3, 8])
def test_many_equal_one_at_a_time(parallel: int) -> None:
    prompts = ["a" * n + "b" * (n % 3) for n in range(1, 12)]
    greedy = Sampling(temperature=0, max_tokens=9, stop=("ba",))
    with model(1, adapter(FakeShift(rule))) as one:
        expected = [one.generate(prompt, greedy).text for prompt in prompts]
    with model(parallel, adapter(FakeShift(rule))) as many:
        found = dict(many.generate_many(prompts, greedy))
    assert [found[i].text for i in range(len(prompts))] == expected


def test_prompts_are_taken_as_slots_become_free() -> None:
    taken: list[int] = []

    def prompts() -> Iterator[str]:
        for i in range(6):
            taken.append(i)
            yield "a" * (i + 1)

    with model(2) as many:
        replies = many.generate_many(prompts(), Sampling(temperature=0, max_tokens=4))
        next(replies)
        assert len(taken) <= 3
        replies.close()
        assert dict(many.generate_many(["ab"], Sampling(temperature=0, max_tokens=4))).keys() == {0}


def test_a_prompt_that_does_not_fit_is_an_error() -> None:
    with model(2) as many, pytest.raises(PromptTooLong):
        list(many.generate_many(["a", "b" * 200]))
    assert END == 0


@pytest.mark.parametrize(("stop", "count", "reason"), [("b", 2, "stop"), ("x", 9, "length")])
def test_a_control_token_named_as_a_stop_text_ends_the_reply(
    stop: str, count: int, reason: str
) -> None:
    base = FakeBase(lambda tokens: (0, 1, 0, 0, 0) if len(tokens) < 4 else (0, 0, 1, 0, 0))
    whole = base.vocabulary
    roles = whole.roles.copy()
    roles[B] = Role.CONTROL
    tokens = tuple(b"" if i == B else text for i, text in enumerate(whole.tokens))
    base.vocabulary = replace(whole, tokens=tokens, roles=roles)
    batch, _ = batch_of(base, 1)
    sampling = Sampling(temperature=0, max_tokens=9, stop=(stop,))
    batch.submit(Request(tokens=(B, B), sampling=sampling))
    last = run_out(batch)[0][-1]
    assert last.timings is not None
    assert (last.timings.generated_tokens, last.finish_reason) == (count, reason)


class Forcing(GreedySampler):
    """Has a form that forces "ab" after each "a"."""

    def forced(self) -> tuple[int, ...]:
        return (AB, AB) if self._base.cache[0][-1:] != [AB] else ()


def test_what_a_form_forces_is_decoded_at_once_and_changes_nothing() -> None:
    rule = [AB, AB, A, AB, AB, A]
    found = {}
    for json_schema in (None, "{}"):
        base = FakeBase(lambda tokens: [float(i == rule[(len(tokens) - 1) % 6]) for i in range(5)])
        batch = Batch(Engine(base), [Slot(0)], lambda _, base=base: Forcing(base))  # type: ignore[misc]
        sampling = Sampling(temperature=0, max_tokens=6, json_schema=json_schema)
        batch.submit(Request(tokens=(B,), sampling=sampling))
        text = "".join(piece.text for piece in run_out(batch)[0])
        found[json_schema] = text, len(base.batches)
    assert found["{}"][0] == found[None][0] == "ababaababa"
    assert found["{}"][1] < found[None][1]
