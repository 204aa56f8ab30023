"""The model that a command's options ask for, and what steers it where they leave that open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from cmc_local import offline
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.errors import UsageError
from cmc_local.hub.places import AdapterChoice, ProxyChoice
from cmc_local.model import profiles
from cmc_local.model.steered import SteeredModel
from cmc_local.steer import proxy
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.prompts import named_form
from cmc_local.text.vocabulary import Vocabulary


def steered(chosen: ModelChoice) -> SteeredModel:
    """Load the base model, with its LoRA files, and what steers it.

    `--adapter instruct:0` loads an adapter without effect. A strength that comes from a profile is
    told on stderr.
    """
    devices = chosen.devices
    if devices.rpc and offline.wanted():
        raise UsageError("--rpc uses the network, which --offline forbids: give one of them")
    acting = chosen.acting
    model = SteeredModel.load(
        chosen.gguf,
        [(one.path, one.alpha) for one in acting],
        control=chosen.control,
        limits=chosen.limits,
        delta_device=devices.delta_device,
        gpu_layers=devices.gpu_layers,
        threads=devices.threads,
        delta_threads=devices.delta_threads,
        overlap=devices.overlap,
        speculate=devices.speculate,
        loras=[(one.path, one.scale) for one in chosen.loras],
        rpc=devices.rpc,
    )
    try:
        if chosen.takes_profile:
            tuned = with_profile(chosen.gguf, acting, lambda: model.base.vocabulary)
            for name, one in zip(list(model.alphas), tuned, strict=True):
                if one.alpha is not None:
                    model.set_alpha(name, one.alpha)
        for pair in chosen.proxies:
            model.attach(_proxy(model, pair, chosen))
    except BaseException:
        model.close()
        raise
    return model


def with_profile(
    gguf: Path, adapters: Sequence[AdapterChoice], vocabulary: Callable[[], Vocabulary]
) -> tuple[AdapterChoice, ...]:
    """The adapters with the strengths that this file's profile knows, where none was given.

    `vocabulary` is the base's; it is asked for where a strength is missing.
    """
    if all(one.alpha is not None for one in adapters):
        return tuple(adapters)
    known = profiles.read(profiles.model_key(gguf, vocabulary()))
    found = []
    for one in adapters:
        tuned = known.get(profiles.adapter_key(one.path)) if one.alpha is None else None
        if tuned is not None:
            told = f"{one.path.name}: alpha {tuned.alpha:g} from the profile of {gguf.name}"
            click.echo(told, err=True)
            one = replace(one, alpha=tuned.alpha)
        found.append(one)
    return tuple(found)


def _proxy(model: SteeredModel, pair: ProxyChoice, chosen: ModelChoice) -> LoadedAdapter:
    """A pair of GGUF models, asked as `--proxy-prompt` says or else as the first adapter is."""
    first = next(iter(model.adapters.values()), None)
    form = named_form("cmc") if first is None else first.form
    devices = chosen.devices
    loaded = proxy.ProxyPair.load(
        pair.expert,
        pair.antiexpert,
        context=chosen.limits.context,
        batch=chosen.limits.batch,
        gpu_layers=devices.gpu_layers,
        threads=devices.delta_threads or devices.threads,
        slots=chosen.limits.parallel,
    )
    try:
        return proxy.loaded(
            loaded,
            model.base.vocabulary,
            chosen.control,
            form=form if pair.prompt is None else named_form(pair.prompt),
            alpha=pair.alpha,
        )
    except BaseException:
        loaded.close()
        raise
