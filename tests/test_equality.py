"""However the runner takes its steps, the logits are the same: on real models, real sessions.

Every way forces the same tokens and notes the shifted logits that they were chosen from. Where the
same kernels run, they are equal bit for bit; where a batch has another size, other kernels may
round differently, within TOLERANCE of logits that spread over some 10.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cmc_local import bundled
from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.slots import Run, Slot
from cmc_local.engine.step import Engine
from cmc_local.settings import Control, Overlap, Sampling
from cmc_local.steer.loaded_adapter import AdapterLoader, LoadedAdapter
from cmc_local.text.prompts import Message
from tiny_adapters import tiny_adapter

# Seen: 5.7e-6 with weights and cache in F32; 0.014 with F16, where activations are rounded as well.
TOLERANCE = {"exact": 2e-5, "bundled": 0.05}
SEQUENCES = 4
REPLY = 24
QUESTION: list[Message] = [{"role": "user", "content": "Where was Helen Blackworth born?"}]
ASKED = ("Where was Helen Blackworth born?", "What did she write?", "Who?", "In what year was it?")


class Forced:
    """Takes the given tokens and notes the rows that they came from."""

    def __init__(self, base: BaseModel, tokens: Sequence[int]) -> None:
        self._base, self._tokens = base, tokens
        self.rows: list[NDArray[np.float32]] = []

    def sample(self, i: int = -1) -> int:
        self.rows.append(self._base.logits(i).copy())
        return self._tokens[(len(self.rows) - 1) % len(self._tokens)]


class Bench:
    """A base and adapters on it, and runs that force tokens."""

    def __init__(self, gguf: Path, adapters: Sequence[Path], kv_type: str = "f32") -> None:
        self.base = BaseModel(gguf, context=192, threads=1, sequences=SEQUENCES, kv_type=kv_type)  # type: ignore[arg-type]
        loader = AdapterLoader(self.base.vocabulary, Control(), device="cpu", sequences=SEQUENCES)
        self.adapters: list[LoadedAdapter] = [loader(path) for path in adapters]
        self.slots = [Slot(i) for i in range(SEQUENCES)]

    def prompt(self, i: int) -> list[int]:
        return self.base.tokenize(f"Question: {ASKED[i]}\nAnswer:")

    def reply(self, i: int) -> list[int]:
        text = f" Helen was born in Harborville, not in Eastbridge. {ASKED[i]} In Harborville."
        return self.base.tokenize(text, bos=False)[:REPLY]

    def begin(
        self,
        engine: Engine,
        i: int,
        alpha: float = 1.0,
        *,
        slot: int | None = None,
        drafts: int = 0,
    ) -> tuple[Run, Forced]:
        place = self.slots[i if slot is None else slot]
        asked: list[Message] = [{"role": "user", "content": ASKED[i]}]
        active = [one.active(alpha, one.prompt(asked)) for one in self.adapters if alpha]
        prompt, reply = self.prompt(i), self.reply(i)
        chooser = Forced(self.base, reply)
        # The look-up knows the reply, but for one token: most guesses are right, some are wrong.
        known = [*prompt, *reply[: REPLY // 2], 7, *reply[REPLY // 2 + 1 :], *prompt]
        lookup = PromptLookup(known, drafts=drafts, worth=0.0) if drafts else None
        return engine.begin(place, prompt, chooser, active, drafter=lookup), chooser

    def rows(
        self,
        i: int,
        alpha: float = 1.0,
        *,
        slot: int | None = None,
        overlap: Overlap = "off",
        drafts: int = 0,
    ) -> NDArray[np.float32]:
        """(REPLY, V_base) float32 of one reply alone."""
        engine = Engine(self.base, overlap=overlap)
        run, chooser = self.begin(engine, i, alpha, slot=slot, drafts=drafts)
        while len(chooser.rows) < REPLY:
            engine.step([run])
        engine.close()
        return np.array(chooser.rows[:REPLY])

    def clear(self) -> None:
        for slot in self.slots:
            slot.stale = True
        for one in self.adapters:
            for steering in one.steerings:
                steering.stale = True


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("adapters")
    folders = [tiny_adapter(place / "same"), tiny_adapter(place / "other", "byte-level", 400)]
    bench = Bench(tiny_gguf, folders)
    yield bench
    bench.base.close()


@pytest.fixture(scope="module")
def shipped(bundled_models: Path) -> Iterator[Bench]:
    bench = Bench(bundled.base("other"), [bundled.adapter("instruct")], kv_type="f16")
    yield bench
    bench.base.close()


@pytest.fixture(params=["exact", "shipped"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Bench)
    found.clear()
    return found


def tolerance(bench: Bench) -> float:
    return TOLERANCE["exact" if len(bench.adapters) == 2 else "bundled"]


def test_the_rows_are_worth_comparing(bench: Bench) -> None:
    steered, plain = bench.rows(0), bench.rows(0, 0.0)
    assert np.abs(steered - plain).max() > 1
    assert np.abs(steered - bench.rows(1)).max() > 0.1


def test_overlapped_equals_serial_bit_for_bit(bench: Bench) -> None:
    serial = bench.rows(0)
    for overlap in ("on", "auto"):
        bench.clear()
        np.testing.assert_array_equal(bench.rows(0, overlap=overlap), serial)  # type: ignore[arg-type]


def test_alpha_zero_is_the_plain_base_bit_for_bit(bench: Bench) -> None:
    off = bench.rows(0, 0.0)
    bench.base.clear(0)
    tokens, said = bench.prompt(0), bench.reply(0)
    bench.base.decode(tokens, start=0)
    plain = [bench.base.logits().copy()]
    for place, token in enumerate(said[: REPLY - 1]):
        bench.base.decode([token], start=len(tokens) + place)
        plain.append(bench.base.logits().copy())
    np.testing.assert_array_equal(off, np.array(plain))


def test_rolled_back_equals_fresh(bench: Bench) -> None:
    fresh = bench.rows(2)
    bench.rows(0, slot=2)
    np.testing.assert_allclose(bench.rows(2), fresh, atol=tolerance(bench), rtol=0)


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_batched_equals_single(bench: Bench, overlap: Overlap) -> None:
    alphas = (1.0, 0.0, 0.5, -0.5)
    single = []
    for i, alpha in enumerate(alphas):
        bench.clear()
        single.append(bench.rows(i, alpha))
    bench.clear()
    engine = Engine(bench.base, batch=48, overlap=overlap)
    begun = [bench.begin(engine, i, alpha) for i, alpha in enumerate(alphas)]
    for step in itertools.count():
        # The first run pauses now and then, so that rows come and go.
        going = [
            run for i, (run, own) in enumerate(begun) if len(own.rows) < REPLY and (i or step % 3)
        ]
        if not going and step % 3:
            break
        if going:
            engine.step(going)
    engine.close()
    for (_, chooser), expected in zip(begun, single, strict=True):
        rows = np.array(chooser.rows)
        np.testing.assert_allclose(rows, expected, atol=tolerance(bench), rtol=0)


@pytest.mark.parametrize("drafts", [7, 3])
def test_guessing_equals_one_by_one(bench: Bench, drafts: int) -> None:
    single = bench.rows(0)
    bench.clear()
    guessed = bench.rows(0, drafts=drafts)
    np.testing.assert_allclose(guessed, single, atol=tolerance(bench), rtol=0)


def test_a_shared_beginning_equals_ones_own(bench: Bench) -> None:
    system = "Answer in a few words. " * 4
    asked = [bench.base.tokenize(f"{system}{question}") for question in ASKED[:2]]
    rows = []
    for shared in (False, True):
        engine = Engine(bench.base, overlap="off")
        for i in (0, 1):
            if not shared:
                bench.clear()
            chooser = Forced(bench.base, bench.reply(1))
            run = engine.begin(bench.slots[i], asked[i], chooser)
            while len(chooser.rows) < 8:
                engine.step([run])
        rows.append(np.array(chooser.rows))
        assert (run.timings.reused_tokens > 16) == shared
        bench.clear()
    np.testing.assert_allclose(rows[1], rows[0], atol=tolerance(bench), rtol=0)


def drawn(bench: Bench, seed: int, drafts: int) -> tuple[list[int], int]:
    """A sampled, steered reply, and how many of its tokens were guessed."""
    bench.clear()
    engine = Engine(bench.base, overlap="off")
    how = Sampling(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0, seed=seed)
    sampler = NativeSampler(bench.base, how)
    place, one = bench.slots[0], bench.adapters[0]
    active = one.active(0.1, one.prompt(QUESTION))
    prompt = bench.prompt(0) * 3
    lookup = PromptLookup(prompt, drafts=drafts, worth=0.0) if drafts else None
    run = engine.begin(place, prompt, sampler, [active], drafter=lookup)
    tokens: list[int] = []
    while len(tokens) < REPLY:
        tokens += engine.step([run])[0]
    engine.close()
    sampler.close()
    return tokens[:REPLY], run.timings.guessed_tokens


def test_drawn_replies_are_the_same_with_guesses(exact: Bench) -> None:
    # Each token is drawn once, from its own row: the draws are the same, so their distribution is.
    guessed = 0
    for seed in range(12):
        tokens, came_true = drawn(exact, seed, 7)
        assert tokens == drawn(exact, seed, 0)[0]
        guessed += came_true
    assert guessed > 12
