"""`cmc-local generate --ray ADDRESS`: a JSONL file's rows answered by workers of a Ray cluster.

The rows stay here: the workers get numbered conversations, and what comes back is put in order, so
that the output is the one of a run without Ray. Ray is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.commands import loading, options
from cmc_local.commands.generate_output import GAINED
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.options import Function
from cmc_local.errors import UsageError
from cmc_local.evaluate.reply_measures import in_order
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message


@dataclass(frozen=True)
class Cluster:
    """`--ray`, `--workers` and `--worker-gpus`."""

    address: str
    workers: int | None = None
    gpus: float = 0.0


def cluster(function: Function) -> Function:
    """The options of a Ray cluster, as `ray`, `workers` and `worker_gpus`."""
    kinds = (
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Answer a JSONL file on a Ray cluster: auto, local, host:port or ray://host:port. "
            "The files must lie under the same paths on every machine.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Models on the Ray cluster, --threads cores each; one for each machine.",
        ),
        click.option(
            "--worker-gpus", type=click.FloatRange(0), help="GPUs of each worker; 0 hides them."
        ),
    )
    return options.applied(function, kinds)


def chosen_cluster(
    ray: str | None, workers: int | None, worker_gpus: float | None, source: str | None
) -> Cluster | None:
    """The cluster that the options name, None without --ray; UsageError where they do not fit."""
    if ray is None:
        if workers is not None or worker_gpus is not None:
            raise UsageError("--workers and --worker-gpus are for --ray: give its address")
        return None
    if source is None:
        raise UsageError("--ray is for JSONL files: give one with --input")
    return Cluster(ray, workers, worker_gpus or 0.0)


@contextlib.contextmanager
def answers(
    cluster: Cluster,
    chosen: ModelChoice,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    base_prompt: BasePrompt | None,
) -> Iterator[Iterator[tuple[dict[str, Any], Sequence[str]]]]:
    """For each conversation, in order, what its row gains, and notices; connected meanwhile."""
    # Imported with Ray, which may be absent.
    from cmc_local.integrations import ray_cluster, ray_files

    ray_cluster.import_ray()
    from cmc_local.integrations import ray as over_ray
    from cmc_local.integrations.ray_worker import Answering, ReplyOptions

    chosen = _everywhere(chosen)
    with (
        contextlib.redirect_stdout(sys.stderr),  # Ray prints what happens to its workers
        over_ray.connected(cluster.address),
        over_ray.one_line_errors(),
    ):
        wanted = over_ray.Workers(
            count=cluster.workers, cpus=chosen.devices.threads, gpus=cluster.gpus
        )
        workers = ray_cluster.fitted(wanted)
        here = replace(chosen, devices=replace(chosen.devices, threads=workers.cpus))
        known = ray_files.marks(*_files(chosen))
        make = partial(
            over_ray.spread,
            Answering,
            [
                {"id": number, "messages": [dict(one) for one in messages]}
                for number, messages in enumerate(prompts)
            ],
            partial(ray_files.same, known, partial(loading.steered, here)),
            ReplyOptions(sampling, base_prompt=base_prompt),
            workers=workers,
            parallel=chosen.limits.parallel,
        )
        yield map(_gained, in_order((row["id"], row) for row in over_ray.streamed(make)))


def _everywhere(chosen: ModelChoice) -> ModelChoice:
    """The same with what only this machine knows: full paths, default adapters, profiles."""
    adapters = chosen.acting
    if chosen.takes_profile:
        adapters = loading.with_profile(chosen.gguf, adapters, lambda: read_vocabulary(chosen.gguf))
    return replace(
        chosen,
        gguf=chosen.gguf.absolute(),
        adapters=tuple(replace(one, path=one.path.absolute()) for one in adapters),
        proxies=tuple(
            replace(one, expert=one.expert.absolute(), antiexpert=one.antiexpert.absolute())
            for one in chosen.proxies
        ),
        loras=tuple(replace(one, path=one.path.absolute()) for one in chosen.loras),
        profile=False,
    )


def _files(chosen: ModelChoice) -> tuple[list[Path], list[Path]]:
    """The GGUF files, and the folders of the adapters."""
    pairs = [path for one in chosen.proxies for path in (one.expert, one.antiexpert)]
    ggufs = [chosen.gguf, *pairs, *(one.path for one in chosen.loras)]
    return ggufs, [one.path for one in chosen.adapters]


def _gained(row: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """What a row gained from a worker, and its notices."""
    reason = {} if row["error"] is None else {"error": row["error"]}
    return {**{name: row[name] for name in GAINED}, **reason}, row["notices"]
