"""The options of `chat`, `generate` and `serve`, and the model that they take unasked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cmc_local import bundled, real_models
from cmc_local.commands import options
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.hub.places import AdapterChoice, gguf_path
from cmc_local.settings import Sampling


def talking(function: Callable[..., Any]) -> Any:
    """All options of a reply, as `chosen`, `base_prompt` and `sampling`.

    What one talks to where they leave it open:

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
    def command(*, chosen: ModelChoice, sampling: Sampling, no_profile: bool, **values: Any) -> Any:
        gguf, adapters = chosen.gguf, chosen.adapters
        known = unnamed() or _by_name(gguf)
        if unnamed() and not any(_of_the_world(one.path) for one in adapters):
            gguf = gguf_path(real_models.usual()[0])
        rivals = chosen.proxies or chosen.loras
        if known and not bundled.holds(gguf) and bundled.has(bundled.BRIEF) and not rivals:
            adapters = adapters or (AdapterChoice(bundled.adapter(bundled.BRIEF)),)
        temperature = click.get_current_context().params.get("temperature")
        if temperature is None and (known or bundled.holds(gguf)):
            sampling = replace(sampling, temperature=0.0)
        chosen = replace(chosen, gguf=gguf, adapters=adapters, profile=not no_profile)
        return function(chosen=chosen, sampling=sampling, **values)

    no_profile = click.option(
        "--no-profile", is_flag=True, help="Don't take the strengths that tune-alpha found."
    )
    kinds = (
        *(options.gguf, options.adapters, options.proxies, options.loras),
        *(options.base_prompt, options.sampling),
        *(options.control, options.limits, options.devices),
    )
    return options.model(*kinds, no_profile)(command)


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
    return adapter.name in bundled.WORLD_ADAPTERS and bundled.holds(adapter)
