"""Where the bundled models lie: `models/` of a checkout, `cmc_local/models` of an installed wheel.

Knows file names only; whoever opens a file checks it. The folder holds

    template.gguf  larger.gguf  other.gguf     base models
    template/                                  the template again, a Hugging Face folder to train on
    instruct/  forget/                         adapters for them
    world/                                     the small world that all of them know, as JSONL
    brief/                                     an adapter towards short, direct answers
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cmc_local.errors import InputError

BASES: Final = ("template", "larger", "other")
WORLD_ADAPTERS: Final = ("instruct", "forget")
BRIEF: Final = "brief"
ADAPTERS: Final = (*WORLD_ADAPTERS, BRIEF)
DEFAULT_BASE: Final = "larger"
DEFAULT_ADAPTER: Final = "instruct"


def folder() -> Path:
    """The folder of the bundled models; InputError where this installation carries none."""
    package = Path(__file__).resolve().parent
    for place in (package.parent / "models", package / "models"):
        if (place / f"{DEFAULT_BASE}.gguf").is_file():
            return place
    raise InputError(
        f"no bundled models in {package.parent / 'models'}: make them with `make models`, "
        "or name your own with --gguf and --adapter"
    )


def base(name: str = DEFAULT_BASE) -> Path:
    """The GGUF of a bundled base model, one of `BASES`."""
    return _existing(f"{name}.gguf", name, BASES)


def adapter(name: str = DEFAULT_ADAPTER) -> Path:
    """The folder of a bundled adapter, one of `ADAPTERS`."""
    return _existing(name, name, ADAPTERS)


def has(name: str) -> bool:
    """Whether this installation carries an adapter of that name."""
    try:
        return adapter(name).is_dir()
    except InputError:
        return False


def holds(path: Path) -> bool:
    """Whether a GGUF file, or an adapter's folder, is one of the bundled ones."""
    try:
        return path.resolve().parent == folder()
    except InputError:
        return False


def world(file: str) -> Path:
    """A file of the small world, such as `test.jsonl`."""
    return _existing(f"world/{file}", file, (file,))


def _existing(place: str, name: str, known: tuple[str, ...]) -> Path:
    if name not in known:
        raise InputError(f"no bundled model {name!r}: there are {', '.join(known)}")
    path = folder() / place
    if not path.exists():
        raise InputError(f"{path} is missing: make it with `make models`")
    return path
