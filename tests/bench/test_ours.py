"""Our arms on the fake models: what is forced, what is timed, what is kept in the caches."""

from __future__ import annotations

import gc

import pytest

from cmc_local.bench.arms import Kind, Place, Sample, digest, undisturbed
from cmc_local.bench.ours import Forced, OurArm, Part
from cmc_local.bench.passages import Passage
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.settings import Overlap
from cmc_local.steer.steering import ActiveAdapter
from fakes import AB, END, A, B, FakeBase, FakeShift, adapter, always

REPLY = (A, B, A, A, B)


class Watched:
    """A sampler that counts, and would always end the reply."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.closed = 0

    def sample(self, i: int = -1) -> int:
        self.rows.append(i)
        return END

    def close(self) -> None:
        self.closed += 1


def place(kind: Kind = "plain", sequences: int = 1) -> Place:
    return Place(kind, "text", 3, sequences)


def passage(*prompt: int) -> Passage:
    return Passage("text", prompt, REPLY, "ab")


def arm(
    base: FakeBase, kind: Kind, parts: list[Part], *, overlap: Overlap = "auto"
) -> tuple[OurArm, Watched]:
    """An arm, and the one sampler that all of its runs use."""
    sampler = Watched()
    engine = Engine(base, overlap=overlap)
    return OurArm(place(kind, len(parts)), engine, parts, lambda: sampler), sampler


def steered(shift: FakeShift) -> ActiveAdapter:
    one = adapter(shift)
    prompt = one.prompt([{"role": "user", "content": "ab"}])
    return one.active(1.0, prompt)


def test_the_text_is_written_whatever_the_sampler_says() -> None:
    base = FakeBase(always(9, 0, 0, 0, 0))
    ours, sampler = arm(base, "plain", [Part(Slot(0), passage(A, A, B))])
    sample = ours.run()
    assert sample.emitted == (REPLY,)
    assert sample.tokens == 4  # the first is not timed
    assert len(sampler.rows) == 5  # but chosen like the others
    assert sampler.closed == 1
    assert base.cache[0] == [A, A, B, *REPLY[:-1]]  # the last was chosen, not decoded


def test_a_second_run_keeps_the_prompt_but_for_its_last_token() -> None:
    base = FakeBase(always(0, 0, 0, 0, 0))
    ours, _ = arm(base, "plain", [Part(Slot(0), passage(A, A, B))])
    ours.run()
    base.decoded.clear()
    assert ours.run().emitted == (REPLY,)
    assert base.decoded == [(B,), (A,), (B,), (A,), (A,)]


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_steered_run_tells_the_parts_of_its_time_apart(overlap: Overlap) -> None:
    base, shift = FakeBase(always(0, 0, 0, 0, 0)), FakeShift(always(0, 1, 2, 3, 4))
    active = steered(shift)
    part = Part(Slot(0), passage(A, A, B), (active,))
    ours, _ = arm(base, "steered", [part], overlap=overlap)
    sample = ours.run()
    assert sample.emitted == (REPLY,)
    parts = dict(sample.parts)
    names = ["decode", "delta", "align", "session", "wait", "map", "sample", "python"]
    assert list(parts) == names
    assert (parts["wait"] > 0) == (overlap == "on")
    of_delta = parts.pop("align"), parts.pop("session")
    assert min(of_delta) > 0
    assert sum(of_delta) < parts["delta"]
    counted = sum(parts.values()) - (parts["delta"] if overlap == "on" else 0)
    assert counted == pytest.approx(sample.seconds)
    assert shift.fed[-1]  # the delta was fed while the text was written


def test_plain_text_has_no_time_of_a_delta() -> None:
    ours, _ = arm(FakeBase(always(0, 0, 0, 0, 0)), "plain", [Part(Slot(0), passage(A, B))])
    assert list(ours.run().parts) == ["decode", "sample", "python"]


def test_several_sequences_start_together_once_all_have_a_first_token() -> None:
    base = FakeBase(always(0, 0, 0, 0, 0))
    parts = [Part(Slot(0), passage(A, A, B)), Part(Slot(1), passage(B))]
    ours, _ = arm(base, "plain", parts)
    sample = ours.run()
    assert sample.emitted == (REPLY, REPLY)
    assert sample.tokens == 8
    assert base.batches[-4:] == [(1, 1)] * 4


def test_guesses_that_are_right_save_steps_and_change_nothing() -> None:
    base = FakeBase(always(0, 0, 0, 0, 0))
    repeats = Passage("text", (A, B, AB, B, A, A), (B, AB, B, A, A, B), "")
    parts = [Part(Slot(0), repeats)]
    ours, _ = arm(base, "plain+guesses", parts)
    sample = ours.run()
    assert sample.emitted == (repeats.reply,)
    assert sample.tokens == 5
    assert len(base.batches) < 6  # one step for each token without guesses
    base.batches.clear()
    plain, _ = arm(base, "plain", parts)
    assert plain.run().emitted == (repeats.reply,)
    assert len(base.batches) == 6


def test_the_first_token_is_measured_with_nothing_cached() -> None:
    base, shift = FakeBase(always(0, 0, 0, 0, 0)), FakeShift(always(0, 1, 2, 3, 4))
    active = steered(shift)
    part = Part(Slot(0), passage(A, A, B), (active,))
    ours, _ = arm(base, "steered", [part])
    ours.run()
    whole = shift.fed[0]
    base.decoded.clear()
    shift.fed.clear()
    assert ours.first_token() > 0
    assert base.decoded == [(A, A, B)]
    assert shift.fed == [whole]
    assert ours.run().emitted == (REPLY,)


def test_after_the_reply_comes_its_end() -> None:
    forced = Forced(Watched(), (A, B), END)
    assert [forced.sample() for _ in range(4)] == [A, B, END, END]


def test_nothing_is_collected_while_something_is_timed() -> None:
    assert gc.isenabled()
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_digest_tells_texts_and_their_order_apart() -> None:
    assert digest(((1, 2), (3,))) == digest(((1, 2), (3,)))
    assert len({digest(((1, 2), (3,))), digest(((1,), (2, 3))), digest(((1, 2, 3),))}) == 3
    assert Sample(1.0, 1).emitted == ()
