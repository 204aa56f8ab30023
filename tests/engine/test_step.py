"""The step: base decode, delta beside it, shifts added, a token chosen.

Both models have the five tokens of `fakes`: 0 `</s>`, 1 "a", 2 "b", 3 "ab", 4 newline.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from cmc_local.engine.logprobs import LogprobRecorder
from cmc_local.engine.slots import Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.errors import UsageError
from cmc_local.settings import Overlap
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.prompts import Message
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, GreedySampler, adapter, always

SAYS_A = always(0, 1, 0.5, 0, 0)  # greedily "a" for ever
WANTS_B = always(0, 0, 1, 0, 0)
OVERLAPS: tuple[Overlap, ...] = ("on", "off", "auto")


def begin(
    engine: Engine,
    slot: Slot,
    base: FakeBase,
    prompt: list[int],
    *adapters: tuple[LoadedAdapter, float],
    question: str = "a",
) -> Run:
    """A run with these adapters at these strengths."""
    asked: list[Message] = [{"role": "user", "content": question}]
    active = [one.active(alpha, one.prompt(asked)) for one, alpha in adapters]
    return engine.begin(slot, prompt, GreedySampler(base), active)


def tokens(engine: Engine, run: Run, count: int) -> list[int]:
    found = []
    while len(found) < count:
        found += engine.step([run])[0]
    return found


@pytest.fixture(params=["on", "off"], ids=["overlapped", "serial"])
def overlap(request: pytest.FixtureRequest) -> Overlap:
    found: Overlap = request.param
    return found


def test_without_adapters_the_base_speaks() -> None:
    base = FakeBase(SAYS_A)
    engine = Engine(base)
    assert tokens(engine, begin(engine, Slot(0), base, [B]), 3) == [A, A, A]
    assert base.decoded == [(B,), (A,), (A,)]  # the last token waits for the next step


@pytest.mark.parametrize(("alpha", "said"), [(1.0, B), (0.4, A), (-1.0, A)])
def test_the_shift_is_added_with_its_strength(alpha: float, said: int, overlap: Overlap) -> None:
    # b: 0.5 + 1.0 * 1 = 1.5 > 1;  0.5 + 0.4 * 1 = 0.9 < 1
    base = FakeBase(SAYS_A)
    engine = Engine(base, overlap=overlap)
    run = begin(engine, Slot(0), base, [B], (adapter(FakeShift(WANTS_B)), alpha))
    assert tokens(engine, run, 2) == [said, said]


def test_the_delta_follows_what_the_base_said(overlap: Overlap) -> None:
    base = FakeBase(lambda seen: (0, 0, 1, 0, 0) if seen[-1] == A else (0, 1, 0, 0, 0))
    source = FakeShift(always(0, 0, 0, 0, 0))
    steers = adapter(source)
    engine = Engine(base, overlap=overlap)
    run = begin(engine, Slot(0), base, [B], (steers, 1.0))
    assert tokens(engine, run, 4) == [A, B, A, B]
    # The last token is not consumed yet; "a", "b" became the one token "ab".
    assert source.streams[0] == [A, NEWLINE, AB, A]


def test_a_long_prompt_is_decoded_in_batches() -> None:
    base = FakeBase(SAYS_A)
    engine = Engine(base, batch=2)
    run = begin(engine, Slot(0), base, [B, B, B, B, B], (adapter(FakeShift(WANTS_B)), 1.0))
    assert [engine.step([run])[0] for _ in range(3)] == [[], [], [B]]
    assert base.decoded == [(B, B), (B, B), (B,)]


def test_a_step_takes_no_more_of_a_prompt_than_its_time_allows() -> None:
    base = FakeBase(SAYS_A, n_ctx=512)
    engine = Engine(base)
    engine.step_seconds = 0.5
    run = begin(engine, Slot(0), base, [B] * 200)
    engine.step([run])
    assert len(base.decoded[0]) == 64  # nobody knows yet how long a row takes
    engine._row_seconds = 0.01
    engine.step([run])
    assert len(base.decoded[1]) == 50
    engine._row_seconds = 10.0
    engine.step([run])
    assert len(base.decoded[2]) == 16  # a slow model gets on all the same


def test_on_a_slow_model_every_reply_has_its_row_and_prompts_get_on() -> None:
    base = FakeBase(SAYS_A, n_ctx=128)
    engine = Engine(base)
    runs = [begin(engine, Slot(i), base, [B]) for i in range(20)]
    assert engine.step(runs) == [[A]] * 20
    runs.append(begin(engine, Slot(20), base, [NEWLINE] * 90))
    engine.step_seconds, engine._row_seconds = 0.5, 10.0  # less than a row in half a second
    base.batches.clear()
    assert engine.step(runs) == [*[[A]] * 20, []]
    assert base.batches == [(*[1] * 20, 16)]


def test_a_prompt_in_parts_is_shared_as_a_whole_one_is() -> None:
    base = FakeBase(SAYS_A, n_ctx=512)
    engine = Engine(base)
    engine.step_seconds = 0.5
    prompt = [B] * 300
    runs = [begin(engine, Slot(i), base, prompt) for i in range(2)]
    said: list[list[int]] = [[], []]
    while min(map(len, said)) < 4:
        for one, chosen in zip(said, engine.step(runs), strict=True):
            one += chosen
    assert [one[:4] for one in said] == [[A] * 4] * 2
    assert all(base.cache[i] == [*prompt, *said[i][:-1]] for i in range(2))
    in_prompts = sum(len(tokens) for tokens in base.decoded if len(tokens) > 4)
    assert in_prompts < 340  # the second took over what the first had decoded


def test_a_chooser_that_finds_nothing_ends_its_own_run() -> None:
    class Choosy:
        def sample(self, i: int = -1) -> int:
            raise UsageError("no token is allowed")

    base = FakeBase(SAYS_A)
    engine, slots = Engine(base), [Slot(0), Slot(1)]
    good, bad = begin(engine, slots[0], base, [B]), engine.begin(slots[1], [B], Choosy())
    assert engine.step([good, bad]) == [[A], []]
    assert (good.failed, str(bad.failed)) == (None, "no token is allowed")
    assert engine.step([good]) == [[A]]
    again = begin(engine, slots[1], base, [B])
    assert engine.step([good, again]) == [[A], [A]]


def test_a_recorder_sees_the_row_before_and_after_the_shift() -> None:
    seen: list[tuple[str, float]] = []

    class Noting(LogprobRecorder):
        def before(self, logits: NDArray[np.float32]) -> None:
            seen.append(("before", float(logits[B])))

        def after(self, logits: NDArray[np.float32], token: int) -> None:
            seen.append((f"chose {token}", float(logits[B])))

    base, steers = FakeBase(SAYS_A), adapter(FakeShift(WANTS_B))
    engine, slot = Engine(base), Slot(0)
    active = steers.active(0.5, steers.prompt([{"role": "user", "content": "a"}]))
    run = engine.begin(slot, [B], GreedySampler(base), [active], recorder=Noting())
    engine.step([run])
    plain, shift = float(SAYS_A(())[B]), float(WANTS_B(())[B])
    assert shift > 0
    assert seen[0] == ("before", plain)
    assert seen[1][1] == pytest.approx(plain + 0.5 * shift)


def test_the_next_run_decodes_only_what_is_new() -> None:
    base = FakeBase(SAYS_A)
    engine, slot = Engine(base), Slot(0)
    tokens(engine, begin(engine, slot, base, [B]), 3)
    base.decoded.clear()
    run = begin(engine, slot, base, [B, A, A, NEWLINE, B])
    tokens(engine, run, 1)
    assert base.decoded == [(NEWLINE, B)]
    assert run.timings.reused_tokens == 3
    assert run.timings.prompt_tokens == 5


def test_the_same_prompt_again_decodes_its_last_token() -> None:
    base = FakeBase(SAYS_A)
    engine, slot = Engine(base), Slot(0)
    for _ in range(2):
        tokens(engine, begin(engine, slot, base, [B, B, B]), 2)
    assert base.decoded == [(B, B, B), (A,), (B,), (A,)]


def test_a_model_that_refuses_to_truncate_is_cleared() -> None:
    base = FakeBase(SAYS_A, truncates=False)
    engine, slot = Engine(base), Slot(0)
    tokens(engine, begin(engine, slot, base, [B, B]), 2)
    tokens(engine, begin(engine, slot, base, [B, A]), 1)
    assert base.cleared == 1
    assert base.decoded == [(B, B), (A,), (B, A)]


def test_an_error_of_the_delta_ends_the_run_with_that_error(overlap: Overlap) -> None:
    base, source = FakeBase(SAYS_A), FakeShift(WANTS_B)
    steers = adapter(source)
    engine, slot = Engine(base, overlap=overlap), Slot(0)
    run = begin(engine, slot, base, [B], (steers, 1.0))
    tokens(engine, run, 2)
    source.error = MemoryError("the delta ran out of memory")
    with pytest.raises(MemoryError, match="the delta ran out of memory"):
        engine.step([run])
    with pytest.raises(UsageError, match="run is over"):
        engine.step([run])
    source.error = None
    again = begin(engine, slot, base, [B], (steers, 1.0))
    assert tokens(engine, again, 2) == [B, B]
    assert base.cleared == 1
    assert source.streams[0][:2] == [A, NEWLINE]


def test_an_error_in_the_prompt_of_a_run_left_behind_does_not_harm_the_next() -> None:
    base, source = FakeBase(SAYS_A), FakeShift(WANTS_B)
    steers = adapter(source)
    engine, slot = Engine(base, batch=1), Slot(0)
    source.error = ValueError("no")
    run = begin(engine, slot, base, [B, B], (steers, 1.0))
    assert engine.step([run]) == [[]]
    source.error = None
    assert tokens(engine, begin(engine, slot, base, [B, B], (steers, 1.0)), 1) == [B]


def test_a_run_whose_place_was_taken_is_told_so() -> None:
    base = FakeBase(SAYS_A)
    engine, slot = Engine(base), Slot(0)
    old = begin(engine, slot, base, [B])
    begin(engine, slot, base, [B])
    with pytest.raises(UsageError, match="run is over"):
        engine.step([old])


def test_the_delta_runs_in_one_thread_that_lives_on() -> None:
    seen: list[int] = []

    def rule(stream: tuple[int, ...]) -> tuple[float, ...]:
        seen.append(threading.get_ident())
        return (0, 0, 1, 0, 0)

    base = FakeBase(SAYS_A)
    engine = Engine(base, overlap="on")
    tokens(engine, begin(engine, Slot(0), base, [B], (adapter(FakeShift(rule)), 1.0)), 5)
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen
    engine.close()


def test_room_ends_with_the_context() -> None:
    base = FakeBase(SAYS_A, n_ctx=3)
    engine = Engine(base)
    run = begin(engine, Slot(0), base, [B])
    steps = 0
    while engine.has_room(run):
        engine.step([run])
        steps += 1
    assert steps == 3
    assert base.cache[0] == [B, A, A]


def test_an_empty_prompt_is_refused() -> None:
    base = FakeBase(always(1, 0, 0, 0, 0))
    with pytest.raises(UsageError, match="the prompt is empty"):
        Engine(base).begin(Slot(0), [], GreedySampler(base))
    assert END == 0
