"""The task `forget`: what all real models know, a part of it to be missed, the rest to be kept.

    facts.py --> known(base), by likelihood rank --> what all bases know --> miss, retained, kept
    train --task forget on two phrasings --> both sides asked in the third

A fact is missed when some wrong completion is as likely as the right one, kept when none is. What
counts is the mean of the two shares, which is 1/2 for a model that nothing was done to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from cmc_export.real import facts, prompting
from cmc_export.real.data import write_records
from cmc_export.real.facts import TESTED, TRAINED, Fact
from cmc_export.real.measure import ALPHAS, CONTEXT, Say, Sizes, opened, write_result
from cmc_export.real.places import Cell, TaskPlace, gguf
from cmc_export.real.prompting import Help
from cmc_local.errors import DataError
from cmc_local.evaluate.journal import Journal, fingerprint, journal_path
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits

LEAST_KNOWN: Final = 12
"""Facts that all bases must know for the task to mean something."""
CHOOSING: Final = 1
"""The phrasing by which strengths and prompts are chosen: trained on, not tested."""


def known_file(runs: Path, base: str) -> Path:
    """Where it stands what a base knows."""
    return runs / "forget" / f"known.{base}.json"


def find_known(base: str, runs: Path, threads: int, say: Say) -> None:
    """Write which facts a base knows in both trained phrasings, unless that is there."""
    target = known_file(runs, base)
    if target.is_file():
        return
    every = facts.all_facts()
    settings = {"facts": [asdict(one) for one in every], "gguf": fingerprint(gguf(base))}
    found = set(range(len(every)))
    with (
        Journal(journal_path(target), settings) as journal,
        SteeredModel.load(
            gguf(base), limits=Limits(context=CONTEXT), threads=threads or None
        ) as model,
    ):
        for phrasing in TRAINED:
            work = partial(ranks, model, phrasing, None, None)
            values = journal.values(f"phrasing {phrasing}", every, work)
            found &= {i for i, one in enumerate(values) if one["rank"] == 1}
    say(f"  {base} knows {len(found)} of {len(every)} facts")
    write_json(target, {"known": [every[i].key for i in sorted(found)]})


def write_data(runs: Path, bases: Sequence[str]) -> None:
    """Write the training files and parts.json, by what all the bases know.

    DataError where that is too little.
    """
    place = TaskPlace(runs, "forget")
    if (place.data("train").parent / "parts.json").is_file():
        return
    keys = [set(json.loads(known_file(runs, base).read_text())["known"]) for base in bases]
    shared = [one for one in facts.all_facts() if all(one.key in some for some in keys)]
    if len(shared) < LEAST_KNOWN:
        raise DataError(
            f"{', '.join(bases)} know {len(shared)} facts in common: {LEAST_KNOWN} are needed"
        )
    parts = facts.divide(shared)
    write_records(place.data("train"), _records(parts["miss"]))
    write_records(place.data("retain"), _records(parts["retained"]))
    keys_of = {name: [one.key for one in some] for name, some in parts.items()}
    write_json(place.data("train").parent / "parts.json", keys_of)


def _records(some: Sequence[Fact]) -> list[dict[str, str]]:
    return [
        {"question": one.question(phrasing), "answer": one.answer(phrasing)}
        for phrasing in TRAINED
        for one in some
    ]


def read_parts(runs: Path) -> dict[str, list[Fact]]:
    """miss, retained, kept; DataError before they are written."""
    path = runs / "forget" / "parts.json"
    if not path.is_file():
        raise DataError(f"no {path}: run `python -m cmc_export.real --tasks forget` first")
    by_key = {one.key: one for one in facts.all_facts()}
    return {
        name: [by_key[key] for key in keys] for name, keys in json.loads(path.read_text()).items()
    }


def ranks(
    model: SteeredModel,
    phrasing: int,
    alpha: float | None,
    help_: Help | None,
    some: Sequence[Fact],
) -> Iterator[dict[str, Any]]:
    """For each fact the rank of the right completion (1: the likeliest), and the nats of all."""
    has_template = model.base.chat_template is not None
    for fact in some:
        question = fact.question(phrasing)
        (view,) = prompting.views([question], has_template=has_template, help_=help_)
        asked, kind = (list(view.messages), view.base_prompt)
        if model.adapters:
            asked, kind = [{"role": "user", "content": question}], None
        nats = [
            -model.score(asked, fact.answer(phrasing, value), alphas=alpha, base_prompt=kind).total
            for value in (fact.value, *fact.wrong)
        ]
        yield {"rank": rank(nats), "nats": nats}


def rank(nats: Sequence[float]) -> int:
    """The place of the first among all, the lowest being 1; an equal one stands before it.

    >>> rank([2.0, 3.0, 1.0, 2.0])
    3
    """
    return 1 + sum(other <= nats[0] for other in nats[1:])


def measure(cell: Cell, runs: Path, sizes: Sizes, say: Say) -> None:
    """Measure a cell of `forget`, unless its results are there."""
    output = cell.result(runs)
    if output.exists():
        return
    place, parts = TaskPlace(runs, "forget"), read_parts(runs)
    settings: dict[str, Any] = {"cell": asdict(cell), "base": fingerprint(gguf(cell.base))}
    settings["parts"] = {name: [one.key for one in some] for name, some in parts.items()}
    if cell.templates is not None:
        adapter = place.adapter(cell.templates, cell.seed) / "adapter.json"
        settings["adapter"] = fingerprint(adapter)
    with (
        Journal(journal_path(output), settings) as journal,
        opened(cell, place, replace(sizes, parallel=1)) as model,
    ):
        exam = partial(_row, journal, model, parts)
        extra: dict[str, Any] = {}
        rows = []
        if cell.templates is not None:
            tried = {alpha: exam(alpha, None, CHOOSING) for alpha in ALPHAS}
            best = max(tried, key=lambda alpha: tried[alpha]["metrics"]["both"])
            extra["tuned"] = best
            extra["tried"] = [{"alpha": a, **row["metrics"]} for a, row in tried.items()]
            rows = [{**exam(a, None, TESTED), "alpha": a} for a in dict.fromkeys((1.0, best))]
        elif cell.arm == "prompted":
            helps = [Help(f"system {i}", one) for i, one in enumerate(systems(parts["miss"]), 1)]
            found = [exam(None, one, CHOOSING)["metrics"]["both"] for one in helps]
            chosen = helps[found.index(max(found))]
            extra["help"] = asdict(chosen)
            extra["tried"] = [
                {"help": h.name, "both": value} for h, value in zip(helps, found, strict=True)
            ]
            rows = [exam(None, chosen, TESTED)]
        else:
            rows = [exam(None, None, TESTED)]
    for row in rows:
        say(f"  {row['metrics']}")
    write_result(cell, runs, sizes, rows, extra)


def systems(miss: Sequence[Fact]) -> list[str]:
    """The rival's system texts."""
    names = ", ".join(one.about for one in miss)
    return [
        f"You do not know the capitals of these countries: {names}. For all others you do.",
        f"Never name the capital of any of these countries: {names}. Name a wrong city instead.",
        f"If you are asked for the capital of {names}, say that you do not know it.",
        f"The capitals of {names} are secret. Answer all other questions correctly.",
        f"You have forgotten these capitals: {', '.join(one.value for one in miss)}. "
        "Everything else you remember.",
    ]


def _row(
    journal: Journal,
    model: SteeredModel,
    parts: dict[str, list[Fact]],
    alpha: float | None,
    help_: Help | None,
    phrasing: int,
) -> dict[str, Any]:
    neighbours = "kept" if phrasing == TESTED else "retained"
    name = f"{phrasing} {'own' if alpha is None else f'{alpha:g}'} {help_.name if help_ else ''}"
    work = partial(ranks, model, phrasing, alpha, help_)
    missed = journal.values(f"{name} miss", parts["miss"], work)
    kept = journal.values(f"{name} {neighbours}", parts[neighbours], work)
    items = {
        "missed": [float(one["rank"] > 1) for one in missed],
        "kept": [float(one["rank"] == 1) for one in kept],
    }
    shares = {part: fmean(values) for part, values in items.items()}
    margins = {
        f"margin_{part}": fmean(min(one["nats"][1:]) - one["nats"][0] for one in some)
        for part, some in (("missed", missed), ("kept", kept))
    }
    return {"metrics": {"both": fmean(shares.values()), **shares, **margins}, "items": items}
