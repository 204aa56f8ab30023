"""The options that several commands share, and what they become.

    @click.command()
    @options.model(options.gguf, options.adapters, options.devices)
    @options.sampling
    @options.json_output
    def command(chosen, sampling, as_json): ...

| decorator | parameter | type |
|---|---|---|
| `model(...)` | `chosen` | `ModelChoice`, from those of the options below that are named |
| `gguf` | `gguf` | `Path`; a file, a bundled base model by name, or one fetched from a hub |
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
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from cmc_local import bundled
from cmc_local.commands import completing
from cmc_local.commands.model_choice import Devices, ModelChoice
from cmc_local.errors import InputError, UsageError
from cmc_local.hub import gguf as hub_gguf
from cmc_local.hub.places import (
    AdapterChoice,
    gguf_path,
    parse_adapter,
    parse_lora,
    parse_proxy,
)
from cmc_local.settings import FORMS, OLD_DRAFTS, Control, Limits, Sampling, drafts
from cmc_local.text.prompts import named_form

Function = TypeVar("Function", bound=Callable[..., Any])


def gguf(function: Function) -> Function:
    """`--gguf` or `-hf`; the bundled default where both are left out."""

    def make(gguf: str | None = None, hf_repo: str | None = None) -> Path:
        if gguf is not None and hf_repo is not None:
            raise UsageError("--gguf and -hf both name a base model: give one of them")
        if hf_repo is not None:
            return hub_gguf.fetch(hf_repo)
        return bundled.base() if gguf is None else gguf_path(gguf)

    kinds = (
        click.option(
            "--gguf",
            "-m",
            metavar="FILE",
            shell_complete=completing.gguf,
            help="Base model: a GGUF file, a bundled one (template, larger, other), or a real one "
            "by name (smollm2, gemma3, qwen25).",
        ),
        click.option(
            "-hf",
            "--hf-repo",
            metavar="USER/REPO[:QUANT]",
            help="Base model from a Hugging Face hub, kept in its cache; Q4_K_M by default.",
        ),
    )
    return _collected(function, "gguf", kinds, make, ("gguf", "hf_repo"))


def adapters(function: Function) -> Function:
    """`--adapter`, repeatable; empty where none is given."""

    def make(adapters: tuple[str, ...] = ()) -> tuple[AdapterChoice, ...]:
        return tuple(parse_adapter(text) for text in adapters)

    kinds = (
        click.option(
            "--adapter",
            "-a",
            "adapters",
            metavar="PLACE[:ALPHA]",
            multiple=True,
            shell_complete=completing.adapter,
            help="Adapter and its strength; repeatable. A folder, a bundled one (brief, instruct, "
            "forget) by name, or hf:USER/REPO from a hub.",
        ),
    )
    return _collected(function, "adapters", kinds, make, ("adapters",))


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
            shell_complete=completing.file,
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
        shell_complete=completing.file,
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
    click.option("--regex", help="What the whole answer matches; @FILE reads a file."),
    click.option("--lark", metavar="GRAMMAR", help="A Lark grammar; @FILE reads a file."),
    click.option(
        "--steer-thinking/--plain-thinking",
        default=None,
        help="Whether adapters act on thoughts too, where the model marks them; they do.",
    ),
    click.option(
        "--logit-bias", metavar="ID:BIAS", multiple=True, help="Add to a token's logit; repeatable."
    ),
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
            "--overlap",
            type=_SWITCH,
            help="Run the deltas beside the base; auto if a core is free.",
        ),
        click.option(
            "--speculate",
            metavar="N",
            callback=_drafts,
            help="Draft N tokens a step from what was said before: faster where replies repeat "
            "their prompts. 0, the default, is off.",
        ),
        click.option(
            "--rpc",
            metavar="HOST:PORT[,...]",
            multiple=True,
            help="RPC servers for the base. No encryption, no authentication: trusted nets only.",
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


def applied(function: Function, kinds: Iterable[Callable[[Any], Any]]) -> Function:
    """The function with these options, which `--help` lists in their order."""
    for option in reversed(tuple(kinds)):
        function = option(function)
    return function


def model(*kinds: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Any]:
    """Options together; those that say which model is loaded become `chosen: ModelChoice`."""
    names = _names(ModelChoice)

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {name: values.pop(name) for name in names if name in values}
            return function(chosen=ModelChoice(**given), **values)

        return applied(command, kinds)

    return decorate


def number_list(
    kind: Callable[[str], float], example: str, *, least: float = -math.inf
) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that reads numbers with commas between, each once, as a tuple; None stays None."""

    def read(_ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            found = tuple(dict.fromkeys(map(kind, text.split(","))))
        except ValueError:
            found = ()
        if not found or not all(math.isfinite(one) and one >= least for one in found):
            bound = f" of at least {least:g}" if math.isfinite(least) else ""
            name = max(option.opts, key=len)
            raise UsageError(
                f"{name} {text}: give numbers{bound} with commas between, as in {example}"
            )
        return found

    return read


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

    return applied(command, kinds)  # type: ignore[return-value]


def _sampling(**values: Any) -> Sampling:
    for name in FORMS:
        text = values.get(name)
        if text is not None and text.startswith("@"):
            values[name] = _read(Path(text[1:]))
    if "logit_bias" in values:
        values["logit_bias"] = tuple(_bias(text) for text in values["logit_bias"])
    return Sampling(**values)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition(":")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias {text}: give ID:BIAS, as in 15:-2.5 or 15:-inf") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _drafts(_ctx: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """The number of drafts; a word of older versions is taken, with a notice."""
    if text is None or text == "off":
        return None if text is None else 0
    if text in ("on", "auto"):
        told = f"--speculate {text}: an old word for {OLD_DRAFTS} drafts a step; give the number"
        click.echo(told, err=True)
        return OLD_DRAFTS
    if not text.isdecimal():
        raise UsageError(f"--speculate {text}: give a number of drafts a step, such as 4; 0 is off")
    return drafts(int(text))


def _check_device(_ctx: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UsageError(f"--delta-device {text}: give auto, cpu, cuda or cuda:N")
    return text
