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
from cmc_local.commands import loading
from cmc_local.commands.choices import AdapterChoice, LoraChoice, ProxyChoice
from cmc_local.commands.generate_output import GAINED
from cmc_local.commands.options import Devices, Function
from cmc_local.errors import UsageError
from cmc_local.model import profiles
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message


@dataclass(frozen=True)
class Cluster:
    """`--ray`, `--workers` and `--worker-gpus`."""

    address: str
    workers: int | None = None
    gpus: float = 0.0


@dataclass(frozen=True)
class Steering:
    """The model that each worker loads: what the options of `generate` say."""

    gguf: Path
    adapters: Sequence[AdapterChoice]
    control: Control
    limits: Limits
    devices: Devices
    proxies: Sequence[ProxyChoice] = ()
    loras: Sequence[LoraChoice] = ()
    profile: bool = True

    def load(self) -> SteeredModel:
        """The model, loaded on this machine."""
        return loading.steered(
            self.gguf,
            self.adapters,
            control=self.control,
            limits=self.limits,
            devices=self.devices,
            proxies=self.proxies,
            loras=self.loras,
            profile=self.profile,
        )

    def files(self) -> tuple[list[Path], list[Path]]:
        """The GGUF files, and the folders of the adapters."""
        pairs = [path for one in self.proxies for path in (one.expert, one.antiexpert)]
        ggufs = [self.gguf, *pairs, *(one.path for one in self.loras)]
        return ggufs, [one.path for one in self.adapters]


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
    for option in reversed(kinds):
        function = option(function)
    return function


def chosen(
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
    steering: Steering,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    base_prompt: BasePrompt | None,
) -> Iterator[Iterator[tuple[dict[str, Any], Sequence[str]]]]:
    """For each conversation, in order, what its row gains, and notices; connected meanwhile."""
    # Imported with Ray, which may be absent.
    from cmc_local.integrations import ray_cluster, ray_files

    ray_cluster.import_ray()
    from cmc_local.integrations import ray as over_ray
    from cmc_local.integrations.ray_worker import Answering, Asking

    steering = _everywhere(steering)
    with (
        contextlib.redirect_stdout(sys.stderr),  # Ray prints what happens to its workers
        over_ray.connected(cluster.address),
        over_ray.one_line_errors(),
    ):
        wanted = over_ray.Workers(
            count=cluster.workers, cpus=steering.devices.threads, gpus=cluster.gpus
        )
        workers = ray_cluster.fitted(wanted)
        here = replace(steering, devices=replace(steering.devices, threads=workers.cpus))
        make = partial(
            over_ray.spread,
            Answering,
            [
                {"id": number, "messages": [dict(one) for one in messages]}
                for number, messages in enumerate(prompts)
            ],
            partial(ray_files.same, ray_files.marks(*steering.files()), here.load),
            Asking(sampling, base_prompt=base_prompt),
            workers=workers,
            parallel=steering.limits.parallel,
        )
        yield _in_order(over_ray.streamed(make))


def _everywhere(steering: Steering) -> Steering:
    """The same with what only this machine knows: full paths, default adapters, profiles."""
    gguf, loras = steering.gguf, steering.loras
    adapters = loading.acting_adapters(gguf, steering.adapters, steering.proxies, loras)
    if steering.profile and not loras:
        adapters = _with_profile(gguf, adapters)
    return replace(
        steering,
        gguf=gguf.absolute(),
        adapters=[replace(one, path=one.path.absolute()) for one in adapters],
        proxies=[
            replace(one, expert=one.expert.absolute(), antiexpert=one.antiexpert.absolute())
            for one in steering.proxies
        ],
        loras=[replace(one, path=one.path.absolute()) for one in loras],
        profile=False,
    )


def _with_profile(gguf: Path, adapters: Sequence[AdapterChoice]) -> tuple[AdapterChoice, ...]:
    """The strengths that this machine's profile of the file knows, where none was given."""
    if all(one.alpha is not None for one in adapters):
        return tuple(adapters)
    known = profiles.read(profiles.model_key(gguf, read_vocabulary(gguf)))
    found = []
    for one in adapters:
        tuned = known.get(profiles.adapter_key(one.path)) if one.alpha is None else None
        if tuned is not None:
            told = f"{one.path.name}: alpha {tuned.alpha:g} from the profile of {gguf.name}"
            click.echo(told, err=True)
            one = replace(one, alpha=tuned.alpha)
        found.append(one)
    return tuple(found)


def _in_order(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Sequence[str]]]:
    """Numbered rows in the order of their numbers, each as soon as those before it are there."""
    held: dict[int, dict[str, Any]] = {}
    turn = 0
    for row in rows:
        held[row["id"]] = row
        while (now := held.pop(turn, None)) is not None:
            gained = {name: now[name] for name in GAINED}
            reason = {} if now["error"] is None else {"error": now["error"]}
            yield {**gained, **reason}, now["notices"]
            turn += 1
