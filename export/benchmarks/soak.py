"""A long run with comings and goings: is anything lost, does anything grow?

    python export/benchmarks/soak.py [--steps 20000] [--slots 4] [--gguf FILE --adapter FOLDER]

Random requests on a few slots: prompts of any length, some that begin alike, with and without
adapters, greedy and drawn, some cancelled in the queue, in their prompt or in mid-reply. Every
request must end once with a reason, every slot must be free at the end, and memory must not grow
in the second half of the steps; in the first, caches of a fixed size fill up. Prints one JSON line;
exit code 1 where something is amiss.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path

import click

from cmc_local import bundled
from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.model.batching import Batch
from cmc_local.model.requests import Request
from cmc_local.settings import Control, Sampling
from cmc_local.steer.loaded_adapter import AdapterLoader

WORDS = "the old mill by the river where Helen wrote her first book about a lighthouse".split()
GROWTH_MB = 2.0
DRAIN = 5_000
"""Steps in which everything that is open must end."""


def memory_mb() -> float:
    """Private and shared memory in use; Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Soak:
    """Random requests on one batch, and what became of them."""

    def __init__(self, gguf: Path, adapter: Path, slots: int, seed: int) -> None:
        self.draw = random.Random(seed)
        self.base = BaseModel(gguf, context=512, sequences=slots)
        loader = AdapterLoader(self.base.vocabulary, Control(), sequences=slots)
        self.adapters = [loader(adapter), loader(adapter)]
        places = [Slot(i) for i in range(slots)]
        self.engine = Engine(self.base, batch=64)
        self.batch = Batch(self.engine, places, lambda how: NativeSampler(self.base, how))
        self.slots = slots
        self.open: set[int] = set()
        self.ended: dict[str, int] = {}
        self.tokens = 0

    def request(self) -> Request:
        draw = self.draw
        text = "Answer in few words, please, and name the place of birth. " * draw.choice((0, 0, 1))
        text += " ".join(draw.choices(WORDS, k=draw.choice((1, 5, 20, 120))))
        active = tuple(
            one.active(draw.choice((0.5, 1.0)), one.prompt([{"role": "user", "content": text}]))
            for one in self.adapters
            if draw.random() < 0.6
        )
        temperature, seed = draw.choice((0.0, 1.0)), draw.randrange(2**31)
        sampling = Sampling(
            temperature=temperature, seed=seed, max_tokens=draw.choice((1, 20, 60, 400))
        )
        tokens = self.base.tokenize(text)
        return Request(tokens=tokens, active=active, sampling=sampling, drafts=draw.choice((0, 4)))

    def step(self) -> None:
        """One step, after some comings and goings."""
        draw = self.draw
        if self.batch.free:
            self.open.add(self.batch.submit(self.request()))
        if self.open and draw.random() < 0.02:
            self.batch.cancel(draw.choice(sorted(self.open)))
        self.take()

    def drain(self) -> None:
        """To the end, half of what is open cancelled."""
        for number in sorted(self.open)[::2]:
            self.batch.cancel(number)
        for _ in range(DRAIN):
            if self.open:
                self.take()

    def take(self) -> None:
        """One step of the batch; a request that goes on after its end is a KeyError."""
        for number, piece in self.batch.step():
            if isinstance(piece, Exception):
                raise piece
            self.tokens += len(piece.tokens)
            if piece.finish_reason is None:
                continue
            self.open.remove(number)
            self.ended[piece.finish_reason] = self.ended.get(piece.finish_reason, 0) + 1


@click.command()
@click.option("--gguf", type=click.Path(path_type=Path), default=None)
@click.option("--adapter", type=click.Path(path_type=Path), default=None)
@click.option("--steps", default=20_000)
@click.option("--slots", default=4)
@click.option("--seed", default=0)
def main(gguf: Path | None, adapter: Path | None, steps: int, slots: int, seed: int) -> None:
    """Take random requests through so many steps."""
    soak = Soak(gguf or bundled.base(), adapter or bundled.adapter(), slots, seed)
    middle = 0.0
    for step in range(steps):
        soak.step()
        if step % 1000 == 0:
            print(f"step {step}, {memory_mb():.1f} MB", file=sys.stderr)
        if step == steps // 2:
            middle = memory_mb()
    late = memory_mb()
    soak.drain()
    found = {
        "steps": steps,
        "ended": soak.ended,
        "tokens": soak.tokens,
        "slots": slots,
        "slots_free": soak.batch.free,
        "lost": len(soak.open),
        "memory_mb": [round(middle, 1), round(late, 1)],
    }
    print(json.dumps(found))
    good = not soak.open and soak.batch.free == slots and late - middle < GROWTH_MB
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
