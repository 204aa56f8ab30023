"""Which GGUF of a repository is meant by `user/repo[:QUANT]`, by the names of its files.

As llama.cpp does it: the quantisation that is asked for, else Q4_K_M, else the first GGUF; a split
model is fetched whole and known by its first part; projectors of images (mmproj) and importance
matrices are no models. It knows names only; `hub` fetches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from cmc_local.errors import InputError
from cmc_local.hub import files as hub

DEFAULT_QUANT: Final = "Q4_K_M"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?<![A-Z0-9])((?:UD-)?"
    r"(?:I?Q[1-8](?:_[A-Z0-9]+)+|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=[-./]|$)",
    re.IGNORECASE,
)


def fetch(text: str) -> Path:
    """The GGUF that `[hf:]user/repo[@revision][:QUANT]` names, downloaded if need be.

    QUANT may also be the name of a file. Of a split model the first part, beside the others.
    Raises UsageError, InputError.
    """
    where = hub.parse(text)
    failure: InputError | None = None
    for snapshot in hub.look_up(where):
        try:
            names = choose(snapshot.files, where.detail)
        except InputError as error:
            place = f"{where} in the cache" if snapshot.cached else str(where)
            failure = failure or InputError(f"{place}: {error}")
            continue
        return hub.fetch(snapshot, names)[0]
    assert failure is not None  # a look-up is never empty
    raise failure


def choose(files: Iterable[str], quant: str = "") -> list[str]:
    """The files to fetch, the one to open first. Raises InputError that says what there is.

    >>> choose(["m-Q8_0.gguf", "m-Q4_K_M.gguf"])
    ['m-Q4_K_M.gguf']
    """
    present = set(files)
    models = sorted(filter(_is_model, present), key=lambda name: (name.count("/"), name))
    if not models:
        raise InputError("no GGUF model is there: look at the repository's files")
    if quant:
        fitting = [name for name in models if _fits(name, quant)]
    else:
        fitting = [name for name in models if _fits(name, DEFAULT_QUANT)] or models
    if not fitting:
        there = ", ".join(dict.fromkeys(map(_label, models)))
        raise InputError(f"no GGUF of {quant!r} is there: choose one of {there}")
    return _whole(fitting[0], present)


def _is_model(name: str) -> bool:
    plain = PurePosixPath(name).name.lower()
    if not plain.endswith(".gguf") or "mmproj" in plain or "imatrix" in plain:
        return False
    part = _PART.fullmatch(plain)
    return part is None or int(part["number"]) == 1


def _stem(name: str) -> str:
    part = _PART.fullmatch(name)
    return part["stem"] if part else name[: -len(".gguf")]


def _fits(name: str, quant: str) -> bool:
    """Whether a file is of a quantisation, or has that name; a dynamic one is of its kind."""
    label = _label(name).upper()
    wanted = (label, label.removeprefix("UD-"), name.upper(), PurePosixPath(name).name.upper())
    return quant.upper() in wanted


def _label(name: str) -> str:
    found = _QUANT.findall(_stem(name))
    return found[-1] if found else name


def _whole(first: str, present: set[str]) -> list[str]:
    part = _PART.fullmatch(first)
    if part is None:
        return [first]
    width = len(part["stem"])
    names = [
        f"{first[:width]}-{number:05d}-of-{part['count']}{first[-len('.gguf') :]}"
        for number in range(1, int(part["count"]) + 1)
    ]
    for name in names:
        if name not in present:
            raise InputError(f"{name} is missing, a part of a split model: choose another file")
    return names
