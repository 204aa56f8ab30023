"""What the commands that train share: the way into the workshop, their options, their report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from cmc_local.commands import completing
from cmc_local.commands.options import applied, number_list
from cmc_local.errors import MissingExtra

Command = TypeVar("Command", bound=Callable[..., Any])

WORKSHOP = (
    *("torch", "transformers", "accelerate", "safetensors"),
    *("onnx", "gguf", "cmc_export"),
)


def import_workshop(module: str) -> Any:
    """A module of cmc_export; MissingExtra where the extra `train` is not installed."""
    try:
        return import_module(f"cmc_export.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in WORKSHOP:
            raise
        raise MissingExtra(
            f'{error.name} is not installed: pip install "cmc-local[train]"'
        ) from None


def path_option(name: str, text: str, **more: Any) -> Callable[[Command], Command]:
    """An option that holds a path; whether it exists is said by the library."""
    return click.option(name, type=click.Path(path_type=Path), help=text, **more)


def template_options(command: Command) -> Command:
    """What `record` and `train` are both told: the data, and how a template is asked about it."""
    losses = click.Choice(["ascent", "npo", "simnpo", "dpo", "idk"])
    options = (
        path_option("--data", "JSON or JSONL of questions and answers; repeatable.", multiple=True),
        path_option("--retain", "With --task forget: what must stay; repeatable.", multiple=True),
        path_option(
            "--plain", "Texts on which the delta is to change nothing; repeatable.", multiple=True
        ),
        click.option("--task", type=click.Choice(["instruct", "forget"]), help="(instruct)"),
        click.option("--forget-loss", type=losses, help="(ascent)"),
        path_option("--refusals", "Of the losses dpo and idk: a text file, one refusal a line."),
        click.option("--prompt", help="Prompt form: a name (cmc) or a text that holds {query}."),
        click.option("--turns", type=click.Choice(["all", "last"]), help="Of conversations (all)."),
        click.option("--max-length", type=int, help="Tokens of an example, cut at its end."),
        click.option(
            "--with-adapter",
            multiple=True,
            metavar="FOLDER[:ALPHA]",
            shell_complete=completing.adapter,
            help="A delta or adapter on the template, frozen too; repeatable.",
        ),
        click.option(
            "--template-prompt",
            type=click.Choice(["adapter", "gguf"]),
            help="How it is asked: as the delta, or in its chat template (adapter).",
        ),
        click.option("--template-precision", type=click.Choice(["auto", "fp32", "bf16"])),
        click.option("--template-device-map", help="accelerate's, as in auto: over several GPUs."),
        click.option("--template-gpu-layers", type=int, help="Of a GGUF template (-1: all)."),
        click.option("--answers-precision", type=click.Choice(["fp16", "fp32"]), help="(fp16)"),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )
    return applied(command, options)


def shape_options(command: Command) -> Command:
    """The options that give the trained model's shape."""
    options = (
        click.option("--shape", help="A preset: nano-s, nano, nano-l, 15m, 42m, 110m."),
        click.option("--width", type=int, help="Instead of the preset's."),
        click.option("--layers", type=int, help="Instead of the preset's."),
        click.option("--heads", type=int, help="Instead of the preset's."),
        click.option("--kv-heads", type=int, help="Instead of the preset's."),
        click.option("--mlp", type=int, help="Instead of the preset's."),
        click.option("--context", type=int, help="Longest text in tokens (1,024)."),
        click.option("--tied/--untied", default=None, help="One matrix for input and output."),
        path_option("--init", "Start from this llama: a Hugging Face folder or a GGUF."),
        click.option(
            "--keep-layers",
            metavar="N,N,...",
            callback=number_list(int, "0,4,8", least=0),
            help="Of --init only these blocks, from 0.",
        ),
        path_option(
            "--keep-vocabulary",
            "Of --init only the tokens that this data uses; repeatable.",
            multiple=True,
        ),
    )
    return applied(command, options)


def loop_options(command: Command) -> Command:
    """The options that say how the loop runs."""
    options = (
        click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write."),
        click.option("--epochs", type=float, help="Times through the data."),
        click.option("--steps", type=int, help="Optimizer steps, instead of --epochs."),
        click.option("--batch", type=int, help="Rows in a forward pass."),
        click.option("--accumulation", type=int, help="Forward passes before a step."),
        click.option("--learning-rate", type=float, help="Its highest value."),
        click.option("--warmup", type=float, help="Share of the steps in which it rises."),
        click.option("--weight-decay", type=float),
        click.option("--clip", type=float, help="The gradient's largest norm."),
        click.option("--seed", type=int),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"])),
        click.option("--device", type=click.Choice(["auto", "cpu"])),
        click.option("--threads", type=int, help="Of the CPU."),
        click.option("--valid-share", type=float, help="Held out, where no file is given."),
        click.option("--evaluate-every", type=int, help="Steps (default: a quarter of the run)."),
        click.option("--log-every", type=int, help="Steps (10)."),
        click.option("--save-minutes", type=float, help="Between checkpoints (5)."),
        click.option("--resume/--no-resume", default=None, help="Go on with an unfinished run."),
    )
    return applied(command, options)


def report(summary: Mapping[str, Any], as_json: bool) -> None:
    """Print a summary on stdout; of several processes the first one does."""
    if os.environ.get("RANK", "0") != "0":
        return
    click.echo(json.dumps(summary) if as_json else show(summary))


def show(summary: Mapping[str, Any]) -> str:
    """A summary for people, one figure a line."""
    width = max(len(name) for name in summary)
    return "\n".join(
        f"{name.replace('_', ' '):<{width}}  {_figure(summary[name])}" for name in summary
    )


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
