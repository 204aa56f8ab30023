"""The published procedure against the runner: exact answers and speed, on the same weights.

    python export/benchmarks/published.py [--limit 100] [--gguf FILE] [--adapter FOLDER] [--alpha 1]

The small world's test questions, greedy, one at a time, by both in turn: each question is asked of
the published procedure (tests/reference/published.py) and of the runner, in an order that changes
with every question, after a warm-up that does not count. Both run the same GGUF in llama.cpp and
the same delta in ONNX Runtime, with the same threads and the same prompts. Two more arms tell what
comes from where: the published procedure with the right token for the end (it takes the one of its
number), and the runner with the paper's settings. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from cmc_local import bundled
from cmc_local.base.model import BaseModel
from cmc_local.delta import adapter
from cmc_local.evaluate.world import GREEDY, Question, examination, rates, read_questions
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits
from reference.published import runner

CONTEXT = 256
WARM_UP = 3
PUBLISHED, ENDING = "published procedure", "published, its end set right"
PAPER, OURS = "runner, the paper's settings", "runner"
PAPERS = Control(unmapped="zero", fallback="none", mid_token="off")

Answer = Callable[[str], tuple[str, int]]
"""A question -> the reply, and how many tokens of the base were decoded for it."""


@dataclass
class Arm:
    """One way to answer, and what it did."""

    answer: Answer
    replies: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ask(self, question: str, *, counts: bool) -> None:
        """One question; the time is that of prompt and reply together."""
        start = time.perf_counter()
        reply, tokens = self.answer(question)
        seconds = time.perf_counter() - start
        if counts:
            self.replies.append(reply.strip())
            self.tokens.append(tokens)
            self.seconds.append(seconds)

    @property
    def paces(self) -> list[float]:
        """Milliseconds a token, question by question."""
        return [1000 * s / n for s, n in zip(self.seconds, self.tokens, strict=True)]


def by_the_published(
    gguf: Path, folder: Path, alpha: float, threads: int, *, right_end: bool = False
) -> Answer:
    """The published procedure; see `reference.published`."""
    one = adapter.load(folder)
    base = BaseModel(gguf, context=CONTEXT, threads=threads)
    published, form = runner(base, one, right_end=right_end), one.settings.prompt

    def answer(question: str) -> tuple[str, int]:
        prompt = form.question(question)
        most = GREEDY.max_tokens
        reply = published.answer(base.tokenize(prompt), prompt, alpha=alpha, most=most)
        return reply.text, len(reply.tokens) + 1

    return answer


def by_the_runner(gguf: Path, folder: Path, alpha: float, threads: int, control: Control) -> Answer:
    """Our runner; every question is a conversation of its own."""
    limits = Limits(context=CONTEXT)
    adapters = [(folder, alpha)]
    model = SteeredModel.load(
        gguf, adapters, control=control, limits=limits, threads=threads, delta_device="cpu"
    )

    def answer(question: str) -> tuple[str, int]:
        reply = model.generate(question, GREEDY, base_prompt="adapter")
        return reply.text, len(reply.tokens) + 1

    return answer


def interleave(arms: Sequence[Arm], questions: Sequence[str], warm_up: Sequence[str]) -> None:
    """Every question to every arm, the first arm another one each time."""
    for question in warm_up:
        for arm in arms:
            arm.ask(question, counts=False)
    for number, question in enumerate(questions):
        turn = number % len(arms)
        for arm in [*arms[turn:], *arms[:turn]]:
            arm.ask(question, counts=True)


def report(arms: dict[str, Arm], asked: Sequence[Question]) -> dict[str, object]:
    """Exact answers, paces, and how each question's pace compares with the published one's."""
    rows = []
    for name, arm in arms.items():
        found = rates(asked, arm.replies)
        pairs = zip(arms[PUBLISHED].paces, arm.paces, strict=True)
        rows.append(
            {
                "arm": name,
                "exact": round(found.exact, 4),
                "fact": round(found.fact, 4),
                "tokens": sum(arm.tokens),
                "ms_per_token": round(statistics.median(arm.paces), 3),
                "ms_per_answer": round(1000 * statistics.median(arm.seconds), 2),
                "speed_ratio": round(statistics.median(a / b for a, b in pairs), 3),
            }
        )
    return {"questions": len(asked), "arms": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, default=bundled.base("other"))
    parser.add_argument("--adapter", type=Path, default=bundled.adapter("instruct"))
    parser.add_argument("--questions", type=Path, default=bundled.world("questions.jsonl"))
    parser.add_argument("--limit", type=int, help="so many of the test questions (all)")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1, help="of the base model")
    given = parser.parse_args()
    asked = examination(read_questions(given.questions), given.limit).test
    if not asked:
        parser.error(f"{given.questions} holds no test question")
    common = (given.gguf, given.adapter, given.alpha, given.threads)
    arms = {
        PUBLISHED: Arm(by_the_published(*common)),
        ENDING: Arm(by_the_published(*common, right_end=True)),
        PAPER: Arm(by_the_runner(*common, PAPERS)),
        OURS: Arm(by_the_runner(*common, Control())),
    }
    questions = [one.question for one in asked]
    interleave(list(arms.values()), questions, questions[:WARM_UP])
    found = report(arms, asked)
    print(f"{given.gguf.name} with {given.adapter.name}, {len(asked)} questions\n")
    print("| | exact | right fact | tokens | ms a token | ms an answer | speed over published |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in found["arms"]:  # type: ignore[attr-defined]
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps({"gguf": given.gguf.name, "adapter": given.adapter.name, **found}))


if __name__ == "__main__":
    main()
