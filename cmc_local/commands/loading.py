"""The model that a command's options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from cmc_local import bundled, offline, profiles, proxy
from cmc_local.commands.choices import AdapterChoice, LoraChoice, ProxyChoice
from cmc_local.commands.options import Devices, Function
from cmc_local.errors import InputError, UsageError
from cmc_local.loaded_adapter import LoadedAdapter
from cmc_local.prompts import named_form
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steered import SteeredModel


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
            guessing=devices.speculate == "auto",
        )
    except BaseException:
        pair.close()
        raise


def is_bundled(gguf: Path) -> bool:
    """Whether a file is one of the models that come with the program."""
    try:
        return gguf.resolve().parent == bundled.folder()
    except InputError:
        return False


def bundled_sampling(gguf: Path, sampling: Sampling) -> Sampling:
    """The bundled models are tiny: they answer greedily unless a temperature is given."""
    given = click.get_current_context().params.get("temperature")
    return replace(sampling, temperature=0.0) if given is None and is_bundled(gguf) else sampling
