"""The model that a command's options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from cmc_local import bundled
from cmc_local.commands.options import AdapterChoice, Devices
from cmc_local.errors import InputError
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steered import SteeredModel


def steered(
    gguf: Path,
    adapters: Sequence[AdapterChoice],
    *,
    control: Control,
    limits: Limits,
    devices: Devices,
) -> SteeredModel:
    """Load the base model and its adapters.

    A bundled base model without a word about adapters takes the bundled one; `--adapter
    instruct:0` loads it without effect.
    """
    chosen = [(one.path, one.alpha) for one in adapters]
    if not chosen and is_bundled(gguf):
        chosen = [(bundled.adapter(), None)]
    return SteeredModel.load(
        gguf,
        chosen,
        control=control,
        limits=limits,
        delta_device=devices.delta_device,
        gpu_layers=devices.gpu_layers,
        threads=devices.threads,
        delta_threads=devices.delta_threads,
        overlap=devices.overlap,
        speculate=devices.speculate,
    )


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
