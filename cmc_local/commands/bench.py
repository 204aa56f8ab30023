"""`cmc-local bench`: how fast steering is here, beside plain text and beside its rivals.

cmc-local bench                                       the bundled models, some seconds
cmc-local bench --gguf FILE --adapter FOLDER          your own
cmc-local bench --synthetic 1b --vocab FILE --delta 15m --delta-vocab tokenizer.json
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
from cmc_local.bench.arms import USUAL
from cmc_local.commands import completing, options
from cmc_local.commands.model_choice import Devices
from cmc_local.commands.workshop import import_workshop
from cmc_local.errors import UsageError
from cmc_local.hub import places

Made = TypeVar("Made")


def _names(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    """Names with commas between; whether there are such arms is checked with the other settings."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@click.command("bench")
@click.option("--gguf", "-m", metavar="FILE", shell_complete=completing.gguf,
              help="Base model: a GGUF file, or a bundled one.")  # fmt: skip
@click.option("--adapter", "-a", metavar="PATH[:ALPHA]", shell_complete=completing.adapter,
              help="Adapter, or a bundled one.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True,
              help="Timed tokens of each run.")  # fmt: skip
@click.option("--prompt-tokens", "contexts", default="300", show_default=True,
              callback=options.number_list(int, "300,16", least=2), metavar="N[,N...]",
              help="Tokens before them; all arms run after the first number.")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 255), default=1, metavar="N",
              help="Write N sequences at once, too.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="The text that is forced upon the models (a bundled one).")  # fmt: skip
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True,
              help="Rounds in which every arm runs once.")  # fmt: skip
@click.option("--arms", default=",".join(USUAL), show_default=True, callback=_names,
              metavar="NAME[,NAME...]", help="Ways of writing to compare.")  # fmt: skip
@click.option("--synthetic", type=click.Choice(["1b", "7b"]),
              help="Base and adapter of random weights; needs the extra `train`.")  # fmt: skip
@click.option("--vocab", type=click.Path(path_type=Path), metavar="GGUF",
              help="The synthetic base's vocabulary: any GGUF that has it.")  # fmt: skip
@click.option("--delta", type=click.Choice(["15m", "42m", "110m"]), default="15m",
              help="The synthetic adapter's size (15m).")  # fmt: skip
@click.option("--delta-vocab", type=click.Path(path_type=Path), metavar="JSON",
              help="The synthetic adapter's tokenizer.json.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR",
              help="Where synthetic models are kept.")  # fmt: skip
@options.devices
@options.json_output
def command(
    gguf: str | None,
    adapter: str | None,
    devices: Devices,
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
    if (devices.overlap, devices.speculate) != ("auto", 0):
        raise UsageError("the arms set --overlap and --speculate themselves: choose with --arms")
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


def _given(gguf: str | None, adapter: str | None) -> tuple[Path, places.AdapterChoice | None]:
    """The base and the adapter that were named; the bundled template and its adapter else."""
    base = bundled.base("template") if gguf is None else places.gguf_path(gguf)
    if adapter is not None:
        return base, places.parse_adapter(adapter)
    if bundled.holds(base):
        return base, places.AdapterChoice(bundled.adapter())
    return base, None


def _made(
    size: str, vocab: Path | None, delta: str, delta_vocab: Path | None, cache: Path | None
) -> tuple[Path, places.AdapterChoice]:
    """A base and an adapter of random weights, from the cache folder if they are there."""
    if vocab is None or delta_vocab is None:
        raise UsageError(
            "--synthetic needs vocabularies: give --vocab, a GGUF that has the base's, and"
            " --delta-vocab, the delta's tokenizer.json"
        )
    from cmc_local.files import cache_folder

    folder = cache_folder() / "synthetic" if cache is None else cache
    base, adapter = apart(make_synthetic, size, vocab, delta, delta_vocab, folder)
    return base, places.AdapterChoice(adapter)


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
