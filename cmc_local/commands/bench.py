"""`cmc-local bench`: how fast steering is here, beside plain text and beside its rivals.

cmc-local bench                                       the bundled models, some seconds
cmc-local bench --gguf FILE --adapter FOLDER          your own
cmc-local bench --synthetic 1b --vocab FILE --delta 15m --delta-vocab tokenizer.json
cmc-local bench map ... / align ...                   two of the parts alone
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import click

from cmc_local import bundled
from cmc_local.bench.arms import KINDS, USUAL
from cmc_local.commands import bench_parts, choices, completing, options
from cmc_local.commands.loading import is_bundled
from cmc_local.commands.workshop import import_workshop
from cmc_local.errors import UsageError

Made = TypeVar("Made")


def _names(_ctx: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        what = f"no arm {unknown[0]!r}" if unknown else "no arm is named"
        raise UsageError(f"--arms {text!r}: {what}; there are {', '.join(KINDS)}")
    return tuple(dict.fromkeys(names))


def lengths(_ctx: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 2:
        raise UsageError(
            f"--prompt-tokens {text!r}: give numbers of at least 2, as in --prompt-tokens 300,16"
        )
    return found


def _synthetic_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Models of random weights instead of files."""
    for option in (
        click.option("--cache", type=click.Path(path_type=Path), metavar="DIR",
                     help="Where synthetic models are kept."),
        click.option("--delta-vocab", type=click.Path(path_type=Path), metavar="JSON",
                     help="The synthetic adapter's tokenizer.json."),
        click.option("--delta", type=click.Choice(["15m", "42m", "110m"]), default="15m",
                     help="The synthetic adapter's size (15m)."),
        click.option("--vocab", type=click.Path(path_type=Path), metavar="GGUF",
                     help="The synthetic base's vocabulary: any GGUF that has it."),
        click.option("--synthetic", type=click.Choice(["1b", "7b"]),
                     help="A base of random weights, and an adapter; needs the extra `train`."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group("bench", invoke_without_command=True)
@click.option("--gguf", "-m", metavar="FILE", shell_complete=completing.gguf,
              help="Base model: a GGUF file, or a bundled one.")  # fmt: skip
@click.option("--adapter", "-a", metavar="PATH[:ALPHA]", shell_complete=completing.adapter,
              help="Adapter, or a bundled one.")  # fmt: skip
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Timed tokens of each run.",
)
@click.option(
    "--prompt-tokens",
    "contexts",
    default="300",
    show_default=True,
    callback=lengths,
    metavar="N[,N...]",
    help="Tokens before them; every arm runs after the first of these numbers.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 255),
    default=1,
    metavar="N",
    help="Write N sequences at once, too.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The text that is forced upon the models (a bundled one).",
)
@click.option(
    "--pairs",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Rounds in which every arm runs once.",
)
@click.option(
    "--arms",
    default=",".join(USUAL),
    show_default=True,
    callback=_names,
    metavar="NAME[,NAME...]",
    help="Ways of writing to compare.",
)
@_synthetic_options
@options.devices
@options.json_output
@click.pass_context
def command(
    ctx: click.Context,
    /,
    gguf: str | None,
    adapter: str | None,
    devices: options.Devices,
    as_json: bool,
    synthetic: str | None,
    vocab: Path | None,
    delta: str,
    delta_vocab: Path | None,
    cache: Path | None,
    **what: Any,
) -> None:
    """Measure plain and steered text, side by side, on this machine.

    The same tokens are written in every arm; arms take turns, and ratios are those within a round.
    The last line is JSON, for programs (--json: nothing else).
    """
    if ctx.invoked_subcommand is not None:
        return
    if (devices.overlap, devices.speculate) != ("auto", 0):
        raise UsageError(
            "--overlap and --speculate are what the arms differ in: choose from them with --arms"
        )
    if devices.rpc:
        raise UsageError("bench measures this machine alone: leave --rpc out")
    if synthetic is None:
        base, chosen = _given(gguf, adapter)
    elif gguf is not None or adapter is not None:
        raise UsageError("--synthetic makes base and adapter: leave --gguf and --adapter out")
    else:
        base, chosen = _made(synthetic, vocab, delta, delta_vocab, cache)
    from cmc_local.bench import report, session

    settings = session.Settings(
        gguf=base,
        adapter=chosen.path if chosen else None,
        alpha=chosen.alpha if chosen else None,
        threads=devices.threads,
        delta_threads=devices.delta_threads,
        delta_device=devices.delta_device,
        gpu_layers=devices.gpu_layers,
        **what,
    )
    tell = _teller()
    result = session.run(settings, tell)
    tell("")
    if not as_json:
        for line in report.as_lines(result):
            click.echo(line)
        click.echo()
    click.echo(json.dumps(report.as_json(result)))


command.add_command(bench_parts.map_command)
command.add_command(bench_parts.align_command)


def _given(gguf: str | None, adapter: str | None) -> tuple[Path, choices.AdapterChoice | None]:
    """The base and the adapter that were named; the bundled template and its adapter else."""
    base = bundled.base("template") if gguf is None else choices.gguf_path(gguf)
    if adapter is not None:
        return base, choices.parse_adapter(adapter)
    if is_bundled(base):
        return base, choices.AdapterChoice(bundled.adapter())
    return base, None


def _made(
    size: str, vocab: Path | None, delta: str, delta_vocab: Path | None, cache: Path | None
) -> tuple[Path, choices.AdapterChoice]:
    """A base and an adapter of random weights, from the cache folder if they are there."""
    if vocab is None or delta_vocab is None:
        raise UsageError(
            "--synthetic needs vocabularies: give --vocab, a GGUF that has the base's, and"
            " --delta-vocab, the delta's tokenizer.json"
        )
    from cmc_local.files import cache_folder

    folder = cache_folder() / "synthetic" if cache is None else cache
    base, adapter = apart(make_synthetic, size, vocab, delta, delta_vocab, folder)
    return base, choices.AdapterChoice(adapter)


def make_synthetic(
    size: str, vocab: Path, delta: str, delta_vocab: Path, folder: Path
) -> tuple[Path, Path]:
    """A base and an adapter of random weights; what is in the folder already is kept."""
    synthetic = import_workshop("synthetic")

    def tell(line: str) -> None:
        click.echo(line, err=True)

    return (
        synthetic.base_model(size, vocab, folder, report=tell),
        synthetic.adapter(delta, delta_vocab, folder, report=tell),
    )


def apart(function: Callable[..., Made], *arguments: Any) -> Made:
    """A function's result from a process of its own: PyTorch's memory and threads stay there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _teller() -> Callable[[str], None]:
    """Says on a terminal's stderr how far the measurement is, on one line."""
    if not sys.stderr.isatty():
        return lambda _line: None

    def tell(line: str) -> None:
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)

    return tell
