"""`serve --models FILE`: several base models in a TOML file, each loaded when it is asked for.

    memory = 6000                 # MB that all loaded ones may take together
    idle = 600                    # seconds without use, after which one is put away

    [[model]]
    name = "qwen"
    gguf = "qwen3-4b.gguf"        # paths are from the file's own folder
    adapters = ["my-adapter:0.8"]
    context = 4096
    parallel = 2

Everything else, sampling and threads among it, is for all of them as on the command line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cmc_local.base import memory
from cmc_local.commands import loading
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.delta import adapter
from cmc_local.errors import CmcError, InputError, UsageError
from cmc_local.hub.places import AdapterChoice, gguf_path, parse_adapter
from cmc_local.model.shared import SharedModel
from cmc_local.steer.strengths import free_name

if TYPE_CHECKING:
    from cmc_local.server.served import Entry, Models

_FILE: Final[Mapping[str, tuple[type, ...]]] = {
    "memory": (int, float),
    "idle": (int, float),
    "model": (list,),
}
_MODEL: Final[Mapping[str, tuple[type, ...]]] = {
    "name": (str,),
    "gguf": (str,),
    "adapters": (list,),
    "context": (int,),
    "parallel": (int,),
}
_CACHE_BYTES: Final = 4
"""Of a number in a delta's cache."""


def read(file: Path, usual: ModelChoice, *, queue: int, patience: float) -> Models:
    """The models of a file. `usual` says what holds for all of them.

    Raises InputError for a file that cannot be read and UsageError for what is wrong in it, a line
    that names the file and the model.
    """
    from cmc_local.server.served import Models

    document = _document(file)
    try:
        _check(document, _FILE, "the file")
        tables = document.get("model", [])
        if not tables:
            raise UsageError("it names no model: write a [[model]] with name and gguf")
        budget = float(document.get("memory", "inf"))
        entries: list[Entry] = []
        for number, table in enumerate(tables, 1):
            made = partial(SharedModel, queue=queue, patience=patience)
            entry = _entry(table, f"model {number}", file.parent, usual, made)
            if entry.name in [one.name for one in entries]:
                raise UsageError(f"two models have the name {entry.name}: rename one")
            if entry.megabytes > budget:
                raise UsageError(
                    f"model {entry.name} takes {entry.megabytes:.0f} MB, more than memory = "
                    f"{budget:.0f}: raise it, or give a smaller context or parallel"
                )
            entries.append(entry)
    except CmcError as error:
        raise type(error)(f"{file}: {error}") from None
    return Models(entries, budget, float(document.get("idle", "inf")))


def _document(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise UsageError(
            f"{file} is no TOML file ({error}): see `cmc-local serve --help`"
        ) from None


def _check(table: Any, known: Mapping[str, tuple[type, ...]], what: str) -> None:
    """Raise UsageError for a key that is not known, or a value of another type."""
    if not isinstance(table, dict):
        raise UsageError(f"{what} must be a table, as in [[model]]")
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{what} has {name!r}: known are {', '.join(known)}")
        if not isinstance(value, known[name]) or isinstance(value, bool):
            wanted = {str: "a text", list: "a list", int: "a number"}[known[name][0]]
            raise UsageError(f"{what}: {name} must be {wanted}, not {value!r}")
        if isinstance(value, int | float) and value <= 0:
            raise UsageError(f"{what}: {name} must be above 0, not {value}")


def _entry(table: Any, what: str, folder: Path, usual: ModelChoice, make: Any) -> Entry:
    from cmc_local.server.served import Entry

    _check(table, _MODEL, what)
    for name in ("name", "gguf"):
        if not table.get(name):
            raise UsageError(f"{what} has no {name}: give one")
    name = table["name"]
    if set("+@") & set(name) or name in ("base", "default"):
        raise UsageError(f"{what}: the name {name!r} cannot be told from others: choose another")
    try:
        adapters = tuple(_adapter(one, folder) for one in table.get("adapters", ()))
        limits = {key: table[key] for key in ("context", "parallel") if key in table}
        gguf = folder / table["gguf"]
        choice = replace(
            usual,
            gguf=gguf if gguf.exists() else gguf_path(table["gguf"]),
            adapters=adapters,
            limits=replace(usual.limits, **limits),
        )
        told, size = _told(adapters, choice)
    except CmcError as error:
        raise type(error)(f"model {name}: {error}") from None
    load = partial(_load, choice, make)
    return Entry(name=name, load=load, told=told, megabytes=size / 2**20)


def _load(choice: ModelChoice, make: Any) -> SharedModel:
    shared: SharedModel = make(loading.steered(choice))
    return shared


def _adapter(text: Any, folder: Path) -> AdapterChoice:
    """An adapter as `--adapter` has it; a path is from the file's own folder, if it is there."""
    if not isinstance(text, str):
        raise UsageError(f'adapters must be texts, as in "my-adapter:0.8", not {text!r}')
    place = text.rpartition(":")[0] or text
    is_here = any((folder / one / adapter.SETTINGS_FILE).is_file() for one in (text, place))
    return parse_adapter(str(folder / text) if is_here else text)


def _told(adapters: Sequence[AdapterChoice], choice: ModelChoice) -> tuple[dict[str, float], int]:
    """The adapters' names and strengths as they will be, and the bytes that all of it takes."""
    sequences = choice.limits.parallel
    size = memory.estimate(choice.gguf, context=choice.limits.context, sequences=sequences)
    told: dict[str, float] = {}
    for one in adapters:
        found = adapter.load(one.path)
        shape = found.settings.shape
        name = free_name(found.settings.name, told)
        told[name] = found.settings.alpha if one.alpha is None else one.alpha
        row = 2 * shape.layers * shape.kv_heads * shape.head_dim * _CACHE_BYTES
        size += found.graph(found.most_exact).stat().st_size + row * shape.context * sequences
    return told, size
