"""What a step decodes: rows, chunks of prompt, guesses, and beginnings that are shared."""

from __future__ import annotations

from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import BESIDE, Run, Slot, plan_step
from cmc_local.engine.step import Engine
from cmc_local.steer.steering import WORTH_COPYING
from fakes import END, NEWLINE, A, B, FakeBase, GreedySampler, always

SAYS_A = always(0, 1, 0, 0)
CONTEXT = 400


def base_and_engine(batch: int = 100) -> tuple[FakeBase, Engine]:
    base = FakeBase(SAYS_A, n_ctx=CONTEXT)
    return base, Engine(base, batch=batch)


def replying(engine: Engine, sequence: int, prompt: list[int], *, drafts: int = 0) -> Run:
    """A run that has chosen its first token, an A."""
    lookup = PromptLookup(prompt, drafts=drafts, worth=0.0) if drafts else None
    base = engine.base
    assert isinstance(base, FakeBase)
    run = engine.begin(Slot(sequence), prompt, GreedySampler(base), drafter=lookup)
    assert engine.step([run]) == [[A]]
    return run


def waiting(engine: Engine, sequence: int, prompt: list[int]) -> Run:
    base = engine.base
    assert isinstance(base, FakeBase)
    return engine.begin(Slot(sequence), prompt, GreedySampler(base))


def shares(engine: Engine, runs: list[Run], batch: int = 100) -> list[tuple[int, int, int]]:
    """(sequence, tokens, drafts) of each share."""
    parts = plan_step(engine.base, runs, batch=batch, drafting=True)
    rows = [part.first_row for part in parts]
    assert rows == [sum(part.rows for part in parts[:i]) for i in range(len(parts))]
    return [(part.run.slot.sequence, len(part.tokens), len(part.drafts)) for part in parts]


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    _, engine = base_and_engine()
    assert shares(engine, [waiting(engine, 0, [B] * 150)]) == [(0, 100, 0)]


def test_beside_replies_a_prompt_comes_in_chunks() -> None:
    _, engine = base_and_engine()
    runs = [replying(engine, 0, [B]), waiting(engine, 1, [B] * 150), replying(engine, 2, [A])]
    assert shares(engine, runs) == [(0, 1, 0), (2, 1, 0), (1, BESIDE, 0)]


def test_prompts_share_what_is_left_in_the_order_of_the_runs() -> None:
    _, engine = base_and_engine()
    runs = [waiting(engine, 0, [A] * 60), waiting(engine, 1, [B] * 60), waiting(engine, 2, [B, A])]
    assert shares(engine, runs) == [(0, 60, 0), (1, 40, 0)]


def test_a_prompt_waits_for_another_that_begins_alike() -> None:
    base, engine = base_and_engine()
    system = [B] * 50
    runs = [waiting(engine, i, [*system, *tail]) for i, tail in enumerate([[A, B], [NEWLINE, A]])]
    assert shares(engine, runs) == [(0, 52, 0)]
    assert engine.step(runs) == [[A], []]
    assert base.copied == []
    assert engine.step(runs) == [[A], [A]]
    assert base.copied == [(0, 1, 50)]
    assert runs[1].timings.reused_tokens == 50
    assert base.cache[1][:52] == [*system, NEWLINE, A]


def test_a_short_beginning_is_not_waited_for() -> None:
    base, engine = base_and_engine()
    runs = [waiting(engine, i, [B] * (WORTH_COPYING - 1) + [i + 1, A]) for i in range(2)]
    assert len(shares(engine, runs)) == 2
    engine.step(runs)
    assert base.copied == []


def test_a_model_that_cannot_roll_back_shares_nothing() -> None:
    base = FakeBase(SAYS_A, n_ctx=CONTEXT, truncates=False)
    engine = Engine(base)
    runs = [waiting(engine, i, [B] * 60) for i in range(2)]
    for _ in range(3):
        engine.step(runs)
    assert base.copied == []


def test_a_reply_that_is_alone_has_drafts() -> None:
    _, engine = base_and_engine()
    prompt = [A, B, NEWLINE, B]  # ... A, then B and so on again
    for i, (drafts, made) in enumerate(((7, 4), (2, 2), (0, 0))):
        run = replying(engine, i, prompt, drafts=drafts)
        assert shares(engine, [run]) == [(i, 1, made)]


def test_what_ends_a_reply_is_never_guessed() -> None:
    _, engine = base_and_engine()
    run = replying(engine, 0, [A, B, END, B], drafts=7)
    assert shares(engine, [run]) == [(0, 1, 1)]


def test_several_replies_have_no_drafts() -> None:
    _, engine = base_and_engine()
    runs = [replying(engine, i, [A, B, B, B], drafts=7) for i in range(2)]
    assert shares(engine, runs) == [(0, 1, 0), (1, 1, 0)]


def test_drafts_stay_within_context_and_batch() -> None:
    base, engine = base_and_engine()
    run = replying(engine, 0, [A, B, NEWLINE, B], drafts=7)
    assert shares(engine, [run], batch=3) == [(0, 1, 2)]
    base.n_ctx = 6  # four tokens of prompt, one that waits, so one more
    assert shares(engine, [run]) == [(0, 1, 1)]
    base.n_ctx = 5
    assert shares(engine, [run]) == [(0, 1, 0)]
