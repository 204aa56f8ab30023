"""One measurement: a base in one arm on one task's test data, by the runner that chats.

    plain      the base as it is
    prompted   with the system text or the examples that validation chose
    delta-...  with the adapter, at alpha 1 and at the alpha that validation chose
    lora       with the base's own LoRA, asked in the form that it was trained in
    proxy      what SmolLM2 with its LoRA says less what SmolLM2 says, added to the base

Both choices are made by the task's own metric on the same validation examples (ties: by the order
of the prompts, by the lower NLL of the strengths). Replies are greedy. What is done is kept in a
journal, so a stopped measurement goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from cmc_export.real import prompting
from cmc_export.real.data import Record, read_records
from cmc_export.real.places import RUNS, Cell, TaskPlace, gguf
from cmc_export.real.prompting import Help, View
from cmc_export.real.tasks import TASKS, Task, is_refusal
from cmc_local.base.model import BaseModel
from cmc_local.errors import UsageError
from cmc_local.evaluate.journal import Journal, fingerprint, journal_path
from cmc_local.evaluate.nll import answer_scores, nll_means
from cmc_local.evaluate.reply_measures import answers, lengths
from cmc_local.evaluate.results import spread
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steer import proxy
from cmc_local.text.prompts import Message, named_form

ALPHAS: Final = (0.25, 0.5, 0.75, 1.0)
CONTEXT: Final = 2048
FORMAT: Final = 1
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    test: int = 60
    """Replies."""
    nll: int = 110
    """Answers that are scored."""
    choose: int = 24
    """Validation examples by which prompts and strengths are chosen."""
    max_tokens: int = 96
    parallel: int = 4
    """Replies written at once."""
    threads: int = 0
    """Of llama.cpp; 0 leaves it the choice. No result depends on it but the time."""


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """What one measurement works with."""

    model: SteeredModel
    task: Task
    journal: Journal
    sizes: Sizes
    as_form: bool
    """Whether every question is put as text in the delta's form (a LoRA's)."""
    say: Say

    @property
    def has_template(self) -> bool:
        return self.model.base.chat_template is not None

    def views(self, questions: Sequence[str], help_: Help | None) -> list[View]:
        """How the questions are put; an adapter's own form acts by itself."""
        if self.model.adapters:
            return [View(({"role": "user", "content": one},), None) for one in questions]
        return prompting.views(
            questions, has_template=self.has_template, help_=help_, form=self.as_form
        )

    def replies(
        self, part: str, records: Sequence[Record], alpha: float | None, help_: Help | None = None
    ) -> list[dict[str, Any]]:
        """For each record its reply, with tokens, why it ended, and seconds."""
        views = self.views([one["question"] for one in records], help_)
        sampling = Sampling(
            temperature=0.0,
            max_tokens=self.sizes.max_tokens,
            stop=help_.stops if help_ is not None else (),
        )

        def work(some: Sequence[View]) -> Iterator[dict[str, Any]]:
            found = answers(
                self.model,
                [list(one.messages) for one in some],
                sampling,
                alphas=alpha,
                base_prompt=views[0].base_prompt,
            )
            return _timed(found)

        return self.journal.values(f"{part}: replies", views, work)

    def nats(
        self, part: str, records: Sequence[Record], alpha: float | None, help_: Help | None = None
    ) -> list[dict[str, Any]]:
        """For each record what its answer costs."""
        views = self.views([one["question"] for one in records], help_)
        talks = [
            [*view.messages, _answer(record["answer"])]
            for view, record in zip(views, records, strict=True)
        ]
        work = partial(answer_scores, self.model, alphas=alpha, base_prompt=views[0].base_prompt)
        return self.journal.values(f"{part}: nll", talks, work)

    def scores(
        self, records: Sequence[Record], replies: Sequence[dict[str, Any]]
    ) -> list[dict[str, float]]:
        """Every metric of each reply."""
        return [
            self.task.score(record, one["reply"])
            for record, one in zip(records, replies, strict=True)
        ]

    def mean(self, records: Sequence[Record], replies: Sequence[dict[str, Any]]) -> float:
        """The mean of the metric that decides."""
        return fmean(one[self.task.metric] for one in self.scores(records, replies))


def measure(cell: Cell, runs: Path, sizes: Sizes, say: Say, alpha_of: int | None = None) -> None:
    """Measure a cell and write its results, unless they are there.

    `alpha_of` is a seed whose tuned alpha this one takes over, in place of choosing its own.
    """
    output = cell.result(runs)
    if output.exists():
        return
    place = TaskPlace(runs, cell.task)
    task = TASKS[cell.task]
    test, valid, train = (read_records(place.data(part)) for part in ("test", "valid", "train"))
    measured = {**asdict(sizes), "threads": None}
    settings = {"cell": asdict(cell), "sizes": measured, "files": _files(cell, place)}
    with Journal(journal_path(output), settings) as journal, opened(cell, place, sizes) as model:
        bench = Bench(model, task, journal, sizes, cell.arm == "lora", say)
        chosen = spread(valid, sizes.choose)
        extra: dict[str, Any] = {}
        if cell.arm == "prompted":
            tried = prompting.candidates(task.systems, train)
            help_, extra["tried"] = choose_help(bench, chosen, tried)
            rows = [_row(bench, test, None, help_)]
            extra["help"] = asdict(help_)
        elif cell.templates is not None:
            if alpha_of is None or alpha_of == cell.seed:
                alpha, extra["tried"] = choose_alpha(bench, chosen)
            else:
                alpha, extra["alpha_of"] = tuned_alpha(replace(cell, seed=alpha_of), runs), alpha_of
            rows = [{**_row(bench, test, one), "alpha": one} for one in dict.fromkeys((1.0, alpha))]
            extra["tuned"] = alpha
        else:
            rows = [_row(bench, test, None)]
    write_result(cell, runs, sizes, rows, extra)


def write_result(
    cell: Cell,
    runs: Path,
    sizes: Sizes,
    rows: Sequence[dict[str, Any]],
    extra: dict[str, Any],
) -> None:
    """The results document of a cell."""
    alpha_of = extra.get("alpha_of")
    write_json(
        cell.result(runs),
        {
            "format": FORMAT,
            **asdict(cell),
            "command": f"python -m cmc_export.real {measure_words(cell, runs, sizes, alpha_of)}",
            **extra,
            "rows": list(rows),
        },
    )


def measure_words(cell: Cell, runs: Path, sizes: Sizes, alpha_of: int | None = None) -> str:
    """The words after `python -m cmc_export.real` that measure a cell."""
    usual = asdict(Sizes())
    given = {name: value for name, value in asdict(sizes).items() if value != usual[name]}
    if alpha_of is not None and cell.templates is not None:
        given["alpha_of"] = alpha_of
    seeds = {"seeds": cell.seed} if cell.is_seeded else {}
    places = {} if runs == RUNS else {"runs": runs}
    named = {"tasks": cell.task, "bases": cell.base, "arms": cell.arm, **seeds, **given, **places}
    options = (f"--{name.replace('_', '-')} {value}" for name, value in named.items())
    return " ".join(("measure", *options))


@contextmanager
def opened(cell: Cell, place: TaskPlace, sizes: Sizes) -> Iterator[SteeredModel]:
    """The base with what its arm puts on it."""
    adapters, loras = [], []
    if cell.templates is not None:
        adapters = [place.adapter(cell.templates, cell.seed)]
    if cell.arm == "lora":
        loras = [(place.lora(cell.base, cell.seed), 1.0)]
    limits = Limits(context=CONTEXT, parallel=sizes.parallel)
    threads = sizes.threads or None
    with SteeredModel.load(
        gguf(cell.base), adapters, limits=limits, loras=loras, threads=threads
    ) as model:
        if cell.arm == "proxy":
            model.attach(_proxy(model, place.lora("smollm2", cell.seed), sizes))
        yield model


def _proxy(model: SteeredModel, lora: Path, sizes: Sizes) -> Any:
    """SmolLM2 with its LoRA less SmolLM2, both asked in the LoRA's form."""
    path = gguf("smollm2")
    halves = [
        BaseModel(
            path,
            context=CONTEXT,
            sequences=sizes.parallel,
            loras=loras,
            threads=sizes.threads or None,
        )
        for loras in ([(lora, 1.0)], [])
    ]
    return proxy.loaded(
        proxy.ProxyPair(*halves),
        model.base.vocabulary,
        Control(),
        form=named_form(prompting.FORM),
    )


# --- choosing ------------------------------------------------------------------------------------


def choose_help(
    bench: Bench, records: Sequence[Record], tried: Sequence[Help]
) -> tuple[Help, list[dict[str, Any]]]:
    """The way of prompting with the best mean, and what each one reached."""
    found = []
    for help_ in tried:
        replies = bench.replies(f"choose {help_.name}", records, None, help_)
        found.append({"help": help_.name, bench.task.metric: bench.mean(records, replies)})
        bench.say(f"  {help_.name}: {found[-1][bench.task.metric]:.3f}")
    best = max(range(len(found)), key=lambda i: (found[i][bench.task.metric], -i))
    return tried[best], found


def choose_alpha(bench: Bench, records: Sequence[Record]) -> tuple[float, list[dict[str, Any]]]:
    """The strength with the best mean, of equal ones that with the lowest NLL; and all of them."""
    found = []
    for alpha in ALPHAS:
        replies = bench.replies(f"choose {alpha:g}", records, alpha)
        nats = bench.nats(f"choose {alpha:g}", records, alpha)
        nll = nll_means(nats)["nll"]
        found.append({"alpha": alpha, bench.task.metric: bench.mean(records, replies), "nll": nll})
        bench.say(f"  alpha {alpha:g}: {found[-1][bench.task.metric]:.3f}, NLL {nll:.3f}")
    best = max(found, key=lambda one: (one[bench.task.metric], -one["nll"]))
    return float(best["alpha"]), found


def tuned_alpha(cell: Cell, runs: Path) -> float:
    """The strength that validation chose for a cell; UsageError where it is not measured yet."""
    path = cell.result(runs)
    if not path.is_file():
        raise UsageError(f"no {path}: measure seed {cell.seed} first, or leave out --alpha-of")
    return float(json.loads(path.read_text(encoding="utf-8"))["tuned"])


# --- rows ----------------------------------------------------------------------------------------


def _row(
    bench: Bench, test: Sequence[Record], alpha: float | None, help_: Help | None = None
) -> dict[str, Any]:
    asked, scored = spread(test, bench.sizes.test), spread(test, bench.sizes.nll)
    part = "test" if alpha is None else f"test {alpha:g}"
    replies = bench.replies(part, asked, alpha, help_)
    nats = bench.nats(part, scored, alpha, help_)
    scores = bench.scores(asked, replies)
    metrics = {name: fmean(one[name] for one in scores) for name in scores[0]}
    bench.say(f"  {part}: {bench.task.metric} {metrics[bench.task.metric]:.3f}")
    seconds, tokens = (sum(one[name] for one in replies) for name in ("seconds", "tokens"))
    return {
        "metrics": {
            **metrics,
            **{name: value for name, value in nll_means(nats).items() if name != "greedy"},
            **lengths(replies),
            "refusals": fmean(is_refusal(one["reply"]) for one in replies),
            "seconds_per_token": seconds / max(tokens, 1),
        },
        "items": {
            **{name: [one[name] for one in scores] for name in scores[0]},
            "nats": [one["nats"] for one in nats],
            "answer_tokens": [one["tokens"] for one in nats],
        },
        "replies": [one["reply"] for one in replies],
    }


def _timed(found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each value with the seconds since the one before: their sum is the whole time."""
    begun = time.perf_counter()
    for one in found:
        now = time.perf_counter()
        yield {**one, "seconds": now - begun}
        begun = time.perf_counter()


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _files(cell: Cell, place: TaskPlace) -> dict[str, Any]:
    """What the values depend on beside the settings."""
    used = [gguf(cell.base), place.data("test"), place.data("valid")]
    if cell.templates is not None:
        used.append(place.adapter(cell.templates, cell.seed) / "adapter.json")
    if cell.arm == "prompted":
        used.append(place.data("train"))
    if cell.arm in ("lora", "proxy"):
        used.append(place.lora(cell.base if cell.arm == "lora" else "smollm2", cell.seed))
    return {str(one.name): fingerprint(one) for one in used}


def smaller(sizes: Sizes, **given: int | None) -> Sizes:
    """The sizes with those that are given; UsageError for one below 1."""
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if value < (0 if name == "threads" else 1):
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return replace(sizes, **chosen)
