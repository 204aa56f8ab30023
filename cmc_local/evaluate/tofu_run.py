"""TOFU's four sets put to a model, answer by answer, so that a stopped run can go on.

    folder --> read_sets --> tofu_measures(model, sets, ...) --> tofu.py --> metrics of a row

The files are those that TOFU publishes (Maini et al. 2024): `forget10_perturbed.json`,
`retain_perturbed.json`, `real_authors_perturbed.json`, `world_facts_perturbed.json`.
Knows SteeredModel and the journal; the arithmetic is in `tofu.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from cmc_local.engine.scoring import Score
from cmc_local.errors import InputError
from cmc_local.evaluate.journal import Value, Work
from cmc_local.evaluate.reply_measures import answers
from cmc_local.evaluate.results import spread
from cmc_local.evaluate.tofu import (
    Item,
    SetMeasures,
    forget_means,
    measure,
    read_items,
    utility,
)
from cmc_local.model.steered import Alphas, SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt

Forget = Literal["01", "05", "10"]
KEPT: Final = ("retain", "real_authors", "world_facts")
Values = Callable[[str, Sequence[Any], Work[Any]], list[Value]]
"""(part, items, work) -> the items' values; `Journal.values` is one."""


def set_file(folder: Path, name: str, forget: Forget) -> Path:
    """The file of one set: `forget`, or one of KEPT."""
    stem = f"forget{forget}" if name == "forget" else name
    return folder / f"{stem}_perturbed.json"


def read_sets(folder: Path, forget: Forget, limit: int | None = None) -> dict[str, list[Item]]:
    """The four sets by name, at most `limit` items of each, evenly spread."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one that holds TOFU's JSON files")
    return {
        name: spread(read_items(set_file(folder, name, forget)), limit)
        for name in ("forget", *KEPT)
    }


def count_values(sets: Mapping[str, Sequence[Item]]) -> int:
    """How many texts `tofu_measures` scores and writes, for a progress bar."""
    texts = {
        (name, item.question, text)
        for name, items in sets.items()
        for item in items
        for text in (item.answer, item.paraphrase, *item.perturbed)
    }
    return len(texts) + sum(map(len, sets.values()))


def tofu_measures(
    model: SteeredModel,
    sets: Mapping[str, Sequence[Item]],
    sampling: Sampling,
    values: Values,
    *,
    alphas: Alphas | None,
    base_prompt: BasePrompt | None,
) -> dict[str, SetMeasures]:
    """The measures of each set; every score and reply goes through `values`."""
    score = partial(_scores, model, alphas=alphas, base_prompt=base_prompt)
    reply = partial(answers, model, sampling=sampling, alphas=alphas, base_prompt=base_prompt)
    return {
        name: measure(
            items,
            partial(_scored, values, f"{name} scores", score),
            partial(_replied, values, f"{name} replies", reply),
        )
        for name, items in sets.items()
    }


def tofu_metrics(measures: Mapping[str, SetMeasures]) -> dict[str, float]:
    """`forget_rouge`, `forget_probability`, ..., the same of the kept sets, `model_utility`."""
    kept = utility(*(measures[name] for name in KEPT))
    means = {"forget": forget_means(measures["forget"])}
    means |= {name: getattr(kept, name) for name in KEPT}
    found = {f"{name}_{key}": x for name, of in means.items() for key, x in asdict(of).items()}
    return {"model_utility": kept.model_utility, **found}


def _scored(
    values: Values, part: str, work: Work[tuple[str, str]], pairs: list[tuple[str, str]]
) -> list[tuple[float, int]]:
    return [(one["log_probability"], one["tokens"]) for one in values(part, pairs, work)]


def _replied(values: Values, part: str, work: Work[str], questions: list[str]) -> list[str]:
    return [one["reply"] for one in values(part, questions, work)]


def _scores(
    model: SteeredModel,
    pairs: Sequence[tuple[str, str]],
    *,
    alphas: Alphas | None,
    base_prompt: BasePrompt | None,
) -> Iterator[Value]:
    for question, answer in pairs:
        score = score_with_end(model, question, answer, alphas=alphas, base_prompt=base_prompt)
        yield {"log_probability": score.total, "tokens": len(score.tokens)}


def score_with_end(
    model: SteeredModel,
    question: str,
    answer: str,
    *,
    alphas: Alphas | None,
    base_prompt: BasePrompt | None,
) -> Score:
    """The score of an answer and of the token that ends it, which TOFU counts."""
    end = model.base.vocabulary.eos_id
    with model.passage(question, answer, alphas=alphas, base_prompt=base_prompt) as passage:
        ended = [*passage.tokens, *([] if end is None else [end])]
        return replace(passage, tokens=ended).score()
