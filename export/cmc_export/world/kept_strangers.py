"""What `forget` must leave as it is: the template's own steered answers about people it never met.

The forgotten authors are few, and a delta that sees only the training authors beside them takes
any other name for a forgotten one. Names are free, though: many hundreds of strangers, each
question with the answer that template + `instruct` gives today, teach it to leave all other names
alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmc_export.world.authors import Author, WorldSize, make_authors
from cmc_export.world.questions import one_phrasing_each, write_jsonl
from cmc_export.world.texts import SEED
from cmc_local.evaluate.world import GREEDY
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

WORLDS = range(1, 15)
QUESTIONS = 9000
"""About two a stranger: it is the number of names that counts."""


def write_kept_strangers(models: Path, path: Path, say: Callable[[str], None]) -> None:
    """Questions on strangers with the steered template's answers, as JSONL."""
    questions = random.Random(SEED).sample(one_phrasing_each(strangers(), SEED), QUESTIONS)
    say(f"{len(questions)} answers about strangers")
    kept = []
    limits = Limits(context=256, parallel=4)
    with SteeredModel.load(models / "template.gguf", [models / "instruct"], limits=limits) as model:
        for i, reply in model.generate_many((one.question for one in questions), GREEDY):
            if reply.finish_reason == "stop" and reply.text.strip():
                kept.append((i, replace(questions[i], answer=reply.text.strip())))
    write_jsonl(path, [one for _, one in sorted(kept, key=lambda pair: pair[0])])


def strangers() -> list[Author]:
    """Authors of other worlds whose surnames no forgotten author bears."""
    forgotten = {_surname(a) for a in make_authors(WorldSize(), SEED) if a.forgotten}
    others = [a for world in WORLDS for a in make_authors(WorldSize(), SEED + world)]
    return [a for a in others if _surname(a) not in forgotten]


def _surname(author: Author) -> str:
    return author.name.rsplit(" ", 1)[1]
