"""Several runs in one step, and several tokens of one run: equal to one at a time, whatever comes.

The rules below make each token depend on all tokens before it, so that a row that was computed
from anything else than its own sequence is seen at once.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.prompts import Message
from fakes import NEWLINE, A, B, FakeBase, FakeShift, GreedySampler, Rule, adapter, always

CONTEXT = 200


def base_rule(seen: tuple[int, ...]) -> list[float]:
    return [float(hash((*seen[-5:], i)) % 97) / 20 if i else -9.0 for i in range(5)]


def delta_rule(seen: tuple[int, ...]) -> list[float]:
    return [float(hash((i, *seen[-7:], len(seen))) % 89) / 20 if i else -9.0 for i in range(5)]


def repeating(seen: tuple[int, ...]) -> list[float]:
    """Goes round A, B, newline for ever, but for one step in nine."""
    said = (A, B, NEWLINE)[len(seen) % 3] if len(seen) % 9 else A
    return [5.0 if i == said else 0.0 for i in range(5)]


def steered(
    engine: Engine,
    slot: Slot,
    prompt: list[int],
    question: str,
    adapters: list[tuple[LoadedAdapter, float]],
    *,
    drafts: int = 0,
) -> Run:
    asked: list[Message] = [{"role": "user", "content": question}]
    active = [one.active(alpha, one.prompt(asked)) for one, alpha in adapters if alpha]
    base = engine.base
    assert isinstance(base, FakeBase)
    lookup = PromptLookup(prompt, drafts=drafts, worth=0.0) if drafts else None
    return engine.begin(slot, prompt, GreedySampler(base), active, drafter=lookup)


def steers_with(mid_token: str = "off") -> LoadedAdapter:
    return adapter(FakeShift(delta_rule, context=CONTEXT), mid_token=mid_token)


def alone(
    rule: Rule, prompt: list[int], question: str, alpha: float, count: int, mid_token: str = "off"
) -> list[int]:
    base = FakeBase(rule, n_ctx=CONTEXT)
    engine = Engine(base, overlap="off")
    steers = steers_with(mid_token)
    run = steered(engine, Slot(0), prompt, question, [(steers, alpha)])
    said: list[int] = []
    while len(said) < count:
        said += engine.step([run])[0]
    return said


@pytest.mark.parametrize("overlap", ["on", "off", "auto"])
@given(
    asked=st.lists(
        st.tuples(
            st.lists(st.sampled_from([A, B, NEWLINE]), min_size=1, max_size=60),
            st.text("ab", min_size=1, max_size=8),
            st.sampled_from([0.0, 0.5, 1.0, -1.0]),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_together_equals_alone(
    overlap: str, asked: list[tuple[list[int], str, float]], seed: int
) -> None:
    base = FakeBase(base_rule, n_ctx=CONTEXT)
    engine = Engine(base, batch=40, overlap=overlap)  # type: ignore[arg-type]
    steers = steers_with("join")
    slots, order = [Slot(i) for i in range(4)], random.Random(seed)
    runs: list[Run] = []
    said: list[list[int]] = []
    while len(runs) < len(asked) or any(len(one) < 12 for one in said):
        if len(runs) < len(asked) and order.random() < 0.5:
            prompt, question, alpha = asked[len(runs)]
            slot = slots[len(runs)]
            runs.append(steered(engine, slot, prompt, question, [(steers, alpha)]))
            said.append([])
        going = [i for i in range(len(runs)) if len(said[i]) < 12]
        order.shuffle(going)
        if going:
            chosen = engine.step([runs[i] for i in going])
            for i, tokens in zip(going, chosen, strict=True):
                said[i] += tokens
    engine.close()
    for (prompt, question, alpha), tokens in zip(asked, said, strict=True):
        assert tokens == alone(base_rule, prompt, question, alpha, len(tokens), "join")


@pytest.mark.parametrize("drafts", [1, 3, 7])
@pytest.mark.parametrize("rule", [base_rule, repeating])
@given(
    prompt=st.lists(st.sampled_from([A, B, NEWLINE]), min_size=1, max_size=40),
    alpha=st.sampled_from([0.0, 0.4, 1.0]),
    mid_token=st.sampled_from(["off", "join"]),
)
def test_guessing_changes_nothing(
    drafts: int, rule: Rule, prompt: list[int], alpha: float, mid_token: str
) -> None:
    base = FakeBase(rule, n_ctx=CONTEXT)
    engine = Engine(base, overlap="off")
    steers = steers_with(mid_token)
    run = steered(engine, Slot(0), prompt, "ab", [(steers, alpha)], drafts=drafts)
    said: list[int] = []
    while len(said) < 40:
        said += engine.step([run])[0]
        assert base.cache[0] == [*prompt, *said][:-1]  # nothing wrong stays behind
    assert said == alone(rule, prompt, "ab", alpha, len(said), mid_token)


def test_right_guesses_save_steps() -> None:
    base = FakeBase(repeating, n_ctx=CONTEXT)
    engine = Engine(base)
    run = steered(engine, Slot(0), [A, B, NEWLINE] * 3, "b", [], drafts=7)
    steps, said = 0, 0
    while said < 60:
        said += len(engine.step([run])[0])
        steps += 1
    assert steps < 30
    assert run.timings.generated_tokens == said
    assert run.timings.guessed_tokens == said - steps


def test_each_row_has_its_own_adapters() -> None:
    # The base wants A; one delta wants B, the other a newline.
    base = FakeBase(always(0, 1, 0.5, 0, 0.4))
    engine = Engine(base)
    one = adapter(FakeShift(always(0, 0, 1, 0, 0)))
    other = adapter(FakeShift(always(0, 0, 0, 0, 1)))
    runs = [
        steered(engine, Slot(0), [A], "a", [(one, 1.0), (other, 0.0)]),
        steered(engine, Slot(1), [A], "a", [(one, 0.0), (other, 1.0)]),
        steered(engine, Slot(2), [A], "a", [(one, 0.0), (other, 0.0)]),
        steered(engine, Slot(3), [A], "a", [(one, 1.0), (other, 2.0)]),
    ]
    assert engine.step(runs) == [[B], [NEWLINE], [A], [NEWLINE]]
    assert not runs[2].deltas.active


def test_the_rows_of_an_adapter_are_fed_together() -> None:
    calls: list[int] = []

    class Counting(FakeShift):
        def feed_many(self, feeds):  # type: ignore[no-untyped-def]
            calls.append(len(feeds))
            return super().feed_many(feeds)

    base = FakeBase(always(0, 1, 0, 0, 0))
    engine = Engine(base)
    steers = adapter(Counting(always(0, 0, 0, 0, 0)))
    runs = [steered(engine, Slot(i), [A], "a", [(steers, 1.0)]) for i in range(3)]
    for _ in range(3):
        engine.step(runs)
    assert calls == [1, 1, 1, 3, 3]  # three prompts, then a token of each reply
    assert base.batches == [(1, 1, 1)] * 3


def test_a_prompt_does_not_hold_up_a_reply() -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=CONTEXT)
    engine = Engine(base)
    first = steered(engine, Slot(0), [A], "a", [])
    engine.step([first])
    second = steered(engine, Slot(1), [B] * 150, "b", [])
    chosen = [engine.step([first, second]) for _ in range(5)]
    assert [len(one) for one, _ in chosen] == [1] * 5
    assert [len(one) for _, one in chosen] == [0, 0, 0, 0, 1]


def test_a_shared_beginning_is_copied_in_both_models() -> None:
    base, source = FakeBase(base_rule, n_ctx=CONTEXT), FakeShift(delta_rule, context=CONTEXT)
    engine, steers = Engine(base), adapter(source)
    system = [A, B, NEWLINE] * 10
    question = "ab" * 30
    runs = []
    for i in range(2):
        runs.append(steered(engine, Slot(i), [*system, B], question, [(steers, 1.0)]))
        while not engine.step(runs)[-1]:
            pass
    assert base.copied == [(0, 1, 30)]
    assert [(one, other) for one, other, _ in source.copied] == [(0, 1)]
    assert source.streams[0][:30] == source.streams[1][:30]


def test_a_model_that_refuses_to_take_back_guesses_goes_on_without_them() -> None:
    base = FakeBase(repeating, n_ctx=CONTEXT)
    engine = Engine(base)
    run = steered(engine, Slot(0), [A, B, NEWLINE, A, B], "b", [], drafts=7)
    said: list[int] = []
    while len(said) < 12:
        said += engine.step([run])[0]
        if len(said) > 3:
            base._truncates = False
    expected = alone(repeating, [A, B, NEWLINE, A, B], "b", 0.0, len(said))
    assert said == expected


def test_an_error_in_one_delta_ends_every_run_of_the_step() -> None:
    base, source = FakeBase(always(0, 0.5, 0, 0, 0)), FakeShift(always(0, 0, 1, 0, 0))
    engine, steers = Engine(base), adapter(source)
    slots = [Slot(0), Slot(1)]
    runs = [steered(engine, slots[0], [A], "a", [(steers, 1.0)])]
    runs.append(steered(engine, slots[1], [A], "a", []))
    engine.step(runs)
    source.error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        engine.step(runs)
    assert [slot.stale for slot in slots] == [True, True]
    source.error = None
    again = [steered(engine, slots[0], [A], "a", [(steers, 1.0)])]
    assert [engine.step(again) for _ in range(2)] == [[[B]], [[B]]]
