"""Places and strengths as they are typed: which adapter, which model, how strongly.

    my-adapter:0.5      hf:user/repo@v2:0.8     instruct             -> AdapterChoice
    chat.gguf,plain.gguf:0.5                                         -> ProxyChoice
    tuned-lora.gguf:0.5                                              -> LoraChoice

A name that is no path may be a bundled model's, a known real one's (`real_models`), or a
repository's on a hub, which is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmc_local import bundled, real_models
from cmc_local.errors import InputError, UsageError
from cmc_local.hub import adapters as hub_adapter
from cmc_local.hub import files as hub
from cmc_local.hub import gguf as hub_gguf


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """`--adapter PLACE[:ALPHA]`; alpha None is the adapter's own."""

    path: Path
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """`--proxy EXPERT,ANTI[:ALPHA]` and `--proxy-prompt`; `prompt` None leaves the form open."""

    expert: Path
    antiexpert: Path
    alpha: float = 1.0
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """`--lora FILE[:SCALE]`."""

    path: Path
    scale: float = 1.0


def parse_adapter(text: str) -> AdapterChoice:
    """A folder, a bundled adapter's name or `hf:user/repo`, and a final `:number` as the alpha.

    >>> parse_adapter("my-adapter:0.5")
    AdapterChoice(path=PosixPath('my-adapter'), alpha=0.5)
    """
    place, alpha = _with_number(text, "--adapter", _is_adapter)
    return AdapterChoice(adapter_path(place), alpha)


def _is_adapter(place: str) -> bool:
    known = Path(place).exists() or place in bundled.ADAPTERS
    return known or (place.startswith(hub.PREFIX) and place != hub.PREFIX)


def parse_proxy(text: str, prompt: str | None = None) -> ProxyChoice:
    """Two GGUF files, the tuned one first, with a comma between them, and a final `:number`."""
    expert, comma, rest = text.partition(",")
    antiexpert, alpha = _with_number(
        rest, "--proxy", lambda place: Path(place).is_file() or place in bundled.BASES
    )
    if not (comma and expert.strip() and antiexpert.strip()):
        raise UsageError(
            f"--proxy {text}: give two GGUF files with a comma between them, the tuned model and "
            "the same model untuned, as in --proxy chat.gguf,plain.gguf"
        )
    strength = 1.0 if alpha is None else alpha
    return ProxyChoice(gguf_path(expert), gguf_path(antiexpert), strength, prompt)


def parse_lora(text: str) -> LoraChoice:
    """A LoRA file (GGUF) and a final `:number` as the scale."""
    place, scale = _with_number(text, "--lora", lambda place: Path(place).is_file())
    if not Path(place).is_file():
        raise InputError(f"no LoRA file at {place or 'an empty path'}: give the path of a GGUF")
    return LoraChoice(Path(place), 1.0 if scale is None else scale)


def _with_number(text: str, option: str, exists: Callable[[str], bool]) -> tuple[str, float | None]:
    """What `PLACE[:NUMBER]` means; a colon may belong to the place itself."""
    place, colon, tail = text.rpartition(":")
    if not colon or not place:
        return text, None
    try:
        number = float(tail)
    except ValueError:
        if Path(text).exists() or not exists(place):
            return text, None  # a colon of the path itself
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"{option} {text}: {tail!r} is no strength; write a number after the colon, "
            f"as in {option} {place}:0.8"
        )
    return place, number


def adapter_path(text: str) -> Path:
    """An existing folder, the bundled adapter of that name, or that of `hf:user/repo`, fetched."""
    if not text.strip():
        raise UsageError("--adapter is empty: give the folder of an adapter")
    if Path(text).exists():
        return Path(text)
    if text.startswith(hub.PREFIX):
        return hub_adapter.pull(text).path
    if text in bundled.ADAPTERS:
        return bundled.adapter(text)
    raise InputError(
        f"no adapter at {text}: give its folder, or a bundled one: {', '.join(bundled.ADAPTERS)}"
    )


def gguf_path(text: str) -> Path:
    """An existing file, a model known by name, or that of `hf:user/repo:QUANT`, fetched."""
    if not text.strip():
        raise UsageError("--gguf is empty: give the path of a GGUF file")
    if Path(text).is_file():
        return Path(text)
    if text.startswith(hub.PREFIX):
        return hub_gguf.fetch(text)
    if text in bundled.BASES:
        return bundled.base(text)
    if text in real_models.NAMES:
        return real_models.find(text)
    if Path(text).is_dir():
        raise InputError(f"{text} is a folder: give the .gguf file in it")
    raise InputError(
        f"no GGUF file at {text}: give its path, or a bundled one: {', '.join(bundled.BASES)}; "
        f"or a real one by its name: {', '.join(real_models.NAMES)}"
    )
