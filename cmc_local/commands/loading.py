"""The model that a command's options ask for, and the one where they name none."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cmc_local import bundled, offline, real_models
from cmc_local.commands.choices import AdapterChoice, LoraChoice, ProxyChoice, gguf_path
from cmc_local.commands.options import Devices, Function
from cmc_local.errors import InputError, UsageError
from cmc_local.model import profiles
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steer import proxy
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.prompts import named_form


def steered(
    gguf: Path,
    adapters: Sequence[AdapterChoice],
    *,
    control: Control,
    limits: Limits,
    devices: Devices,
    proxies: Sequence[ProxyChoice] = (),
    loras: Sequence[LoraChoice] = (),
    profile: bool = True,
) -> SteeredModel:
    """Load the base model, with its LoRA files, and what steers it.

    A bundled base model without a word about any of these takes the bundled adapter; `--adapter
    instruct:0` loads it without effect. An adapter without a strength takes the one that
    `tune-alpha` found for this file, which stderr is told; with `profile` off, or LoRA files, which
    make another model of it, its own.
    """
    if devices.rpc and offline.wanted():
        raise UsageError("--rpc uses the network, which --offline forbids: give one of them")
    chosen = acting_adapters(gguf, adapters, proxies, loras)
    model = SteeredModel.load(
        gguf,
        [(one.path, one.alpha) for one in chosen],
        control=control,
        limits=limits,
        delta_device=devices.delta_device,
        gpu_layers=devices.gpu_layers,
        threads=devices.threads,
        delta_threads=devices.delta_threads,
        overlap=devices.overlap,
        speculate=devices.speculate,
        loras=[(one.path, one.scale) for one in loras],
        rpc=devices.rpc,
    )
    try:
        if profile and not loras:
            _take_profile(model, gguf, chosen)
        for one in proxies:
            model.attach(_proxy(model, one, control=control, limits=limits, devices=devices))
    except BaseException:
        model.close()
        raise
    return model


def acting_adapters(
    gguf: Path,
    adapters: Sequence[AdapterChoice],
    proxies: Sequence[ProxyChoice],
    loras: Sequence[LoraChoice],
) -> tuple[AdapterChoice, ...]:
    """The adapters that are named, or the default ones where nothing is."""
    return tuple(adapters) if adapters or proxies or loras else default_adapters(gguf)


def default_adapters(gguf: Path) -> tuple[AdapterChoice, ...]:
    """What steers where nothing is named: the bundled adapter, on a bundled model alone."""
    return (AdapterChoice(bundled.adapter()),) if is_bundled(gguf) else ()


def no_profile(function: Function) -> Function:
    """`--no-profile`, as `no_profile: bool`."""
    return click.option(
        "--no-profile", is_flag=True, help="Don't take the strengths that tune-alpha found."
    )(function)


def _take_profile(model: SteeredModel, gguf: Path, chosen: Sequence[AdapterChoice]) -> None:
    """Set the strengths that the profile of this GGUF file knows, where none was given."""
    loaded = zip(model.alphas, chosen, strict=True)
    unset = [(name, one.path) for name, one in loaded if one.alpha is None]
    known = profiles.read(profiles.model_key(gguf, model.base.vocabulary)) if unset else {}
    for name, folder in unset:
        if (tuned := known.get(profiles.adapter_key(folder))) is not None:
            model.set_alpha(name, tuned.alpha)
            told = f"{name}: alpha {tuned.alpha:g} from the profile of {gguf.name}"
            click.echo(told, err=True)


def _proxy(
    model: SteeredModel,
    choice: ProxyChoice,
    *,
    control: Control,
    limits: Limits,
    devices: Devices,
) -> LoadedAdapter:
    """A pair of GGUF models, asked as `--proxy-prompt` says or else as the first adapter is."""
    first = next(iter(model.adapters.values()), None)
    form = named_form("cmc") if first is None else first.form
    pair = proxy.ProxyPair.load(
        choice.expert,
        choice.antiexpert,
        context=limits.context,
        batch=limits.batch,
        gpu_layers=devices.gpu_layers,
        threads=devices.delta_threads or devices.threads,
        slots=limits.parallel,
    )
    try:
        return proxy.loaded(
            pair,
            model.base.vocabulary,
            control,
            form=form if choice.prompt is None else named_form(choice.prompt),
            alpha=choice.alpha,
        )
    except BaseException:
        pair.close()
        raise


def is_bundled(gguf: Path) -> bool:
    """Whether a file, or an adapter's folder, is one of those that come with the program."""
    try:
        return gguf.resolve().parent == bundled.folder()
    except InputError:
        return False


def usual_model(function: Function) -> Function:
    """What one talks to where the options leave it open; stands below them.

    | named | base model | adapter |
    |---|---|---|
    | nothing | SmolLM2, where it and `brief` are here; else the small world's `larger` | its own |
    | a small world's adapter | `larger` | that one |
    | `--gguf smollm2`, or another real model by name | that one | `brief` |
    | a bundled base model | that one | `instruct` |
    | any other base model | that one | none |

    All but the last are small, and answer greedily unless a temperature is given.
    """

    @functools.wraps(function)
    def command(
        *, gguf: Path, adapters: tuple[AdapterChoice, ...], sampling: Sampling, **values: Any
    ) -> Any:
        known = unnamed() or _by_name(gguf)
        if unnamed() and not any(_of_the_world(one.path) for one in adapters):
            gguf = gguf_path(real_models.usual()[0])
        rivals = values.get("proxies") or values.get("loras")
        if known and not is_bundled(gguf) and bundled.has(bundled.BRIEF) and not rivals:
            adapters = adapters or (AdapterChoice(bundled.adapter(bundled.BRIEF)),)
        chosen = click.get_current_context().params.get("temperature")
        if chosen is None and (known or is_bundled(gguf)):
            sampling = replace(sampling, temperature=0.0)
        return function(gguf=gguf, adapters=adapters, sampling=sampling, **values)

    return command  # type: ignore[return-value]


def unnamed() -> bool:
    """Whether the command that runs was given no base model."""
    given = click.get_current_context().params
    return given.get("gguf") is None and given.get("hf_repo") is None


def _by_name(gguf: Path) -> bool:
    """Whether `--gguf` was given the name of a real model, and no file of that name."""
    name = click.get_current_context().params.get("gguf")
    return name in real_models.NAMES and gguf != Path(name)


def _of_the_world(adapter: Path) -> bool:
    """Whether an adapter is one of the small world's, which say nothing to a real model."""
    return adapter.name in bundled.WORLD_ADAPTERS and is_bundled(adapter)
