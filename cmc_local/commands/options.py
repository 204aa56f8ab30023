"""The options that several commands share, and what they become.

    @click.command()
    @options.gguf
    @options.adapters
    @options.devices
    @options.sampling
    @options.control
    @options.json_output
    def command(gguf, adapters, devices, sampling, control, as_json): ...

| decorator | parameter | type |
|---|---|---|
| `gguf` | `gguf` | `Path`; a file, or the name of a bundled base model |
| `adapters` | `adapters` | `tuple[AdapterChoice, ...]` |
| `proxies` | `proxies` | `tuple[ProxyChoice, ...]` |
| `loras` | `loras` | `tuple[LoraChoice, ...]` |
| `sampling` | `sampling` | `settings.Sampling` |
| `control` | `control` | `settings.Control` |
| `limits` | `limits` | `settings.Limits` |
| `devices` | `devices` | `Devices` |
| `base_prompt` | `base_prompt` | `"gguf"`, `"adapter"`, `"raw"` or None |
| `json_output` | `as_json` | `bool` |
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from cmc_local import bundled
from cmc_local.errors import InputError, UsageError
from cmc_local.prompts import named_form
from cmc_local.settings import Control, Limits, Overlap, Sampling, Speculate

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """`--adapter PATH[:ALPHA]`; alpha None is the adapter's own."""

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


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the two models run, on how many threads, and how; None lets the library choose."""

    delta_device: str = "auto"
    gpu_layers: int = -1
    threads: int | None = None
    delta_threads: int | None = None
    overlap: Overlap = "auto"
    speculate: Speculate = "auto"


def parse_adapter(text: str) -> AdapterChoice:
    """A folder or the name of a bundled adapter, and a final `:number` as the alpha.

    >>> parse_adapter("my-adapter:0.5")
    AdapterChoice(path=PosixPath('my-adapter'), alpha=0.5)
    """
    place, alpha = _with_number(
        text, "--adapter", lambda place: Path(place).exists() or place in bundled.ADAPTERS
    )
    return AdapterChoice(adapter_path(place), alpha)


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
    """An existing folder, or the bundled adapter of that name."""
    if not text.strip():
        raise UsageError("--adapter is empty: give the folder of an adapter")
    if Path(text).exists():
        return Path(text)
    if text in bundled.ADAPTERS:
        return bundled.adapter(text)
    raise InputError(
        f"no adapter at {text}: give its folder, or a bundled one: {', '.join(bundled.ADAPTERS)}"
    )


def gguf_path(text: str) -> Path:
    """An existing file, or the bundled base model of that name."""
    if not text.strip():
        raise UsageError("--gguf is empty: give the path of a GGUF file")
    if Path(text).is_file():
        return Path(text)
    if text in bundled.BASES:
        return bundled.base(text)
    if Path(text).is_dir():
        raise InputError(f"{text} is a folder: give the .gguf file in it")
    raise InputError(
        f"no GGUF file at {text}: give its path, or a bundled one: {', '.join(bundled.BASES)}"
    )


def gguf(function: Function) -> Function:
    """`--gguf`; the bundled default where it is left out."""
    return click.option(
        "--gguf",
        "-m",
        metavar="FILE",
        default=None,
        callback=lambda _ctx, _option, text: bundled.base() if text is None else gguf_path(text),
        help="Base model: a GGUF file, or a bundled one (template, larger, other).",
    )(function)


def adapters(function: Function) -> Function:
    """`--adapter`, repeatable; empty where none is given."""
    return click.option(
        "--adapter",
        "-a",
        "adapters",
        metavar="PATH[:ALPHA]",
        multiple=True,
        callback=lambda _ctx, _option, texts: tuple(parse_adapter(text) for text in texts),
        help="Adapter and its strength; repeatable. A bundled one (instruct, forget) by name.",
    )(function)


def proxies(function: Function) -> Function:
    """`--proxy`, repeatable, and `--proxy-prompt`, together as `proxies`."""

    def make(proxy: tuple[str, ...] = (), proxy_prompt: str | None = None) -> Any:
        if proxy_prompt is not None:
            named_form(proxy_prompt)
        return tuple(parse_proxy(text, proxy_prompt) for text in proxy)

    kinds = (
        click.option(
            "--proxy",
            metavar="EXPERT,ANTI[:ALPHA]",
            multiple=True,
            help="Add what a tuned GGUF model says less what the untuned one says; repeatable.",
        ),
        click.option(
            "--proxy-prompt",
            metavar="FORM",
            help="How the pair is asked: a prompt form's name or a text with {query}; by default "
            "as the first adapter, else cmc.",
        ),
    )
    return _collected(function, "proxies", kinds, make, ("proxy", "proxy_prompt"))


def loras(function: Function) -> Function:
    """`--lora`, repeatable; empty where none is given."""
    return click.option(
        "--lora",
        "loras",
        metavar="FILE[:SCALE]",
        multiple=True,
        callback=lambda _ctx, _option, texts: tuple(parse_lora(text) for text in texts),
        help="A LoRA (GGUF) on the base model itself, and its scale; repeatable.",
    )(function)


SAMPLING_OPTIONS = (
    click.option("--temperature", "-t", type=float, help="0 is greedy."),
    click.option("--top-k", type=int, help="Keep the K most likely tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep the most likely tokens up to this mass."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--typical-p", type=float, help="Locally typical sampling; 1 is off."),
    click.option("--repeat-penalty", type=float, help="1 is off."),
    click.option("--frequency-penalty", type=float, help="0 is off."),
    click.option("--presence-penalty", type=float, help="0 is off."),
    click.option("--penalty-last-n", type=int, help="Tokens that penalties look at; -1 for all."),
    click.option("--seed", type=int, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, help="Stop before this text; repeatable."),
    click.option("--max-tokens", "-n", type=int, help="At most so many tokens of answer."),
    click.option("--grammar", metavar="GBNF", help="A grammar; @FILE reads it from a file."),
    click.option("--json-schema", metavar="JSON", help="A JSON schema; @FILE reads a file."),
)


def sampling(function: Function) -> Function:
    """The sampler's options, together as `sampling: Sampling`."""
    return _collected(function, "sampling", SAMPLING_OPTIONS, _sampling, _names(Sampling))


def control(function: Function) -> Function:
    """How a shift is carried over, together as `control: Control`."""
    kinds = (
        click.option("--unmapped", type=click.Choice(["neutral", "zero"])),
        click.option("--fallback", type=click.Choice(["first-piece", "none"])),
        click.option("--mid-token", type=click.Choice(["join", "off"])),
    )
    return _collected(function, "control", kinds, Control, _names(Control))


def limits(function: Function) -> Function:
    """Sizes, together as `limits: Limits`."""
    kinds = (
        click.option(
            "--context", type=int, help="Tokens of context; 0 takes the model's own, at most 8,192."
        ),
        click.option("--batch", type=int, help="Prompt tokens decoded at once."),
    )
    return _collected(function, "limits", kinds, Limits, _names(Limits))


_SWITCH = click.Choice(["auto", "on", "off"])


def devices(function: Function) -> Function:
    """Devices, threads and what they do at once, together as `devices: Devices`."""
    kinds = (
        click.option("--delta-device", metavar="auto|cpu|cuda[:N]", callback=_check_device),
        click.option("--n-gpu-layers", "gpu_layers", type=int, help="-1 for all of the base's."),
        click.option("--threads", type=click.IntRange(min=1), help="Threads of the base model."),
        click.option("--delta-threads", type=click.IntRange(min=1), help="Threads of a delta."),
        click.option(
            "--overlap", type=_SWITCH, help="Run the deltas beside the base; auto if it is faster."
        ),
        click.option(
            "--speculate", type=_SWITCH, help="Check guessed tokens together; auto if it is faster."
        ),
    )
    return _collected(function, "devices", kinds, Devices, _names(Devices))


def base_prompt(function: Function) -> Function:
    """`--base-prompt`; None leaves it to the library."""
    return click.option(
        "--base-prompt",
        type=click.Choice(["gguf", "adapter", "raw"]),
        default=None,
        help="How the base is asked: its own chat template, the adapter's form, or plain text.",
    )(function)


def json_output(function: Function) -> Function:
    """`--json` as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(
        function
    )


def _names(settings: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(settings))


def _collected(
    function: Function,
    parameter: str,
    kinds: tuple[Callable[[Any], Any], ...],
    make: Callable[..., Any],
    names: tuple[str, ...],
) -> Function:
    """Add the options; hand their values, where given, as one object to the command."""

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        given = {name: values.pop(name) for name in names if name in values}
        chosen = {name: value for name, value in given.items() if value not in (None, ())}
        return function(**values, **{parameter: make(**chosen)})

    for option in reversed(kinds):
        command = option(command)
    return command  # type: ignore[return-value]


def _sampling(**values: Any) -> Sampling:
    for name in ("grammar", "json_schema"):
        text = values.get(name)
        if text is not None and text.startswith("@"):
            values[name] = _read(Path(text[1:]))
    return Sampling(**values)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _check_device(_ctx: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UsageError(f"--delta-device {text}: give auto, cpu, cuda or cuda:N")
    return text
