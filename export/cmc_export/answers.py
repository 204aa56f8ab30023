"""A template's answers on disk: the sums of every position of every row, for training to read.

    answers/
      table.json             what it was made of, and the sha256 of every file: written last
      template-tokenizer.json
      asked.jsonl            where the template was asked in its chat template: rows in its tokens
      rows.bin               (R, 4) int64: a row's key (two numbers), first position, positions
      targets.bin            (N, 2) int32: the target's delta token (V_delta for none), and the
                             template's log-probability of it, float32 by its bits
      log-mass.bin           (N, V_delta + 1) float16 or float32, see sums.py

While it is being made the last three grow, and unfinished.json stands in place of table.json: it
says what the table is made of, and how many rows are whole. A row's key is a hash of its tokens and
places, so a table serves every run over rows that it holds, in any order and split.

Knows files and sums; nothing of templates, losses or training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cmc_export.loop import Batch
from cmc_export.sums import Sums
from cmc_local.errors import InputError, TrainingError
from cmc_local.files import write_json

FORMAT = 1
TABLE, UNFINISHED = "table.json", "unfinished.json"
ASKED = "asked.jsonl"
TOKENIZER, ROWS, TARGETS, MASS = (
    "template-tokenizer.json",
    "rows.bin",
    "targets.bin",
    "log-mass.bin",
)
GROWING = (ROWS, TARGETS, MASS)

Precision = Literal["fp16", "fp32"]
TYPES: dict[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32}
Key = tuple[int, int]


@dataclass(frozen=True)
class Made:
    """What a table is made of: two runs with the same may share it."""

    template: str
    """Its name."""
    template_sha256: str
    """Of the GGUF file, or of a folder's files."""
    template_vocabulary: str
    """Fingerprint."""
    template_context: int
    template_parameters: int
    template_tokens: int
    """The vocabulary's size."""
    map_sha256: str
    tokenizer_sha256: str
    """Of the delta's tokenizer.json."""
    delta_tokens: int
    with_adapter: tuple[str, ...] = ()
    """Deltas on the template: hash and strength of each."""
    precision: Precision = "fp16"
    prompt: str = "adapter"
    """How the template was asked: as the delta, or `gguf`, in its own chat template."""

    def stride(self) -> int:
        """Bytes of a position in log-mass.bin."""
        return (self.delta_tokens + 1) * np.dtype(TYPES[self.precision]).itemsize

    def difference(self, other: Made) -> str:
        """What is not the same in `other`, for an error; "" where nothing is."""
        words = {
            "template_sha256": "the template",
            "template_vocabulary": "the template's vocabulary",
            "tokenizer_sha256": "the delta's tokenizer",
            "map_sha256": "the token map",
            "with_adapter": "the adapters under it",
            "precision": "the precision",
            "prompt": "--template-prompt",
        }
        found = [w for n, w in words.items() if getattr(self, n) != getattr(other, n)]
        return found[0] if found else ""


class Answers:
    """A whole table, memory-mapped: what a batch of its rows is to be compared with."""

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        """Raises InputError unless the table is there and (`check`) every byte is as written."""
        self.folder = folder
        document = _read_json(folder / TABLE)
        self.made = _made(document, folder)
        self.name = self.made.template
        if check:
            _check_files(folder, document["files"])
        rows = np.fromfile(folder / ROWS, np.int64).reshape(-1, 4)
        self._rows = {(a, b): (first, count) for a, b, first, count in rows.tolist()}
        self.positions = int(rows[:, 3].sum())
        targets = np.fromfile(folder / TARGETS, np.int32).reshape(-1, 2)
        self._targets = targets[:, 0].astype(np.int64)
        self._logprobs = targets[:, 1].copy().view(np.float32)
        shape = (self.positions, self.made.delta_tokens + 1)
        kind = TYPES[self.made.precision]
        self._mass = np.memmap(folder / MASS, kind, "r", shape=shape) if self.positions else None

    @property
    def template_tokens(self) -> int:
        """The template's vocabulary."""
        return self.made.template_tokens

    def prepare(self, batch: Batch) -> None:
        """Nothing: it is all there."""

    def __call__(self, batch: Batch) -> Sums:
        """The sums of the batch's kept positions, row by row, float32 on the batch's device."""
        return self.of([(a, b) for a, b in batch["keys"].tolist()]).to(batch["keep"].device)

    def of(self, keys: Sequence[Key]) -> Sums:
        """The sums of these rows' positions; KeyError for a row that is not there."""
        places = [self._rows[key] for key in keys]
        at = np.concatenate([np.arange(first, first + count) for first, count in places])
        assert self._mass is not None
        mass = torch.from_numpy(np.asarray(self._mass[at], np.float32))
        # Rounded masses sum to 1 within 1e-3: this takes most of the rounding out of every loss.
        mass -= torch.logsumexp(mass, 1, keepdim=True)
        return Sums(
            mass,
            torch.from_numpy(self._targets[at]),
            torch.from_numpy(self._logprobs[at]),
        )

    def missing(self, keys: Iterable[Key]) -> int:
        """How many of these rows it does not hold."""
        return sum(key not in self._rows for key in set(keys))


class Writer:
    """A table in the making; rows that were whole before an interruption are not asked again."""

    def __init__(
        self, folder: Path, made: Made, tokenizer_json: bytes, asked: bytes | None = None
    ) -> None:
        """Begin, or go on with what an earlier run of the same left; InputError if of another."""
        self.folder, self.made = folder, made
        self.rows = self.positions = 0
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / UNFINISHED
        if unfinished.is_file():
            document = _read_json(unfinished)
            other = _made(document, folder)
            if other != made:
                raise InputError(
                    f"{folder} was begun with {other.difference(made) or 'other settings'} of "
                    "another run: give the same, or remove it"
                )
            self.rows, self.positions = int(document["rows"]), int(document["positions"])
        (folder / TOKENIZER).write_bytes(tokenizer_json)
        if asked is not None:
            (folder / ASKED).write_bytes(asked)
        sizes = (32 * self.rows, 8 * self.positions, made.stride() * self.positions)
        self._files = [_opened_at(folder / n, s) for n, s in zip(GROWING, sizes, strict=True)]
        self._note()

    def add(self, keys: Sequence[Key], counts: Sequence[int], sums: Sums) -> None:
        """Append rows, each with `counts` of the positions in `sums`; whole once this returns."""
        firsts = self.positions + np.cumsum([0, *counts])[:-1]
        rows = np.column_stack([np.array(keys, np.int64), firsts, np.array(counts, np.int64)])
        targets = np.empty((len(sums), 2), np.int32)
        targets[:, 0] = sums.targets.cpu().numpy()
        targets[:, 1] = sums.target_logprobs.float().cpu().numpy().view(np.int32)
        mass = sums.log_mass.float().cpu().numpy().astype(TYPES[self.made.precision])
        try:
            for file, values in zip(self._files, (rows, targets, mass), strict=True):
                file.write(np.ascontiguousarray(values).data)
                file.flush()
            self.rows, self.positions = self.rows + len(keys), self.positions + len(sums)
            self._note()
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot grow ({error.strerror or error}) after {self.positions:,} "
                "positions: make room, and go on with the same command and --resume"
            ) from None

    def finish(self) -> None:
        """Write table.json: from now on it can be read."""
        for file in self._files:
            os.fsync(file.fileno())
            file.close()
        names = [name for name in (TOKENIZER, ASKED, *GROWING) if (self.folder / name).is_file()]
        files = {name: _sha256(self.folder / name) for name in names}
        document = {"format": FORMAT, **asdict(self.made), "rows": self.rows}
        write_json(self.folder / TABLE, {**document, "positions": self.positions, "files": files})
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def known(self) -> set[Key]:
        """The keys of the rows that are whole."""
        found = np.fromfile(self.folder / ROWS, np.int64, 4 * self.rows).reshape(-1, 4)
        return {(a, b) for a, b in found[:, :2].tolist()}

    def _note(self) -> None:
        document = {"format": FORMAT, **asdict(self.made), "rows": self.rows}
        write_json(self.folder / UNFINISHED, {**document, "positions": self.positions})


def reopen(folder: Path) -> None:
    """Make a finished table one that can grow."""
    document = _read_json(folder / TABLE)
    del document["files"]
    write_json(folder / UNFINISHED, document)
    (folder / TABLE).unlink()


def is_whole(folder: Path) -> bool:
    """Whether a finished table lies there."""
    return (folder / TABLE).is_file()


def key(*parts: Iterable[int]) -> Key:
    """Two numbers that stand for some lists of numbers.

    >>> key([1, 2], [3]) == key([1, 2], [3]) != key([1], [2, 3])
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        numbers = np.fromiter(part, np.int64)
        digest.update(len(numbers).to_bytes(8, "little") + numbers.tobytes())
    a, b = np.frombuffer(digest.digest(), np.int64).tolist()
    return a, b


def keys_tensor(keys: Sequence[Key]) -> Tensor:
    """Keys as a batch holds them, (B, 2) int64."""
    return torch.tensor(keys, dtype=torch.int64)


def sha256_of(path: Path) -> str:
    """Of a file, or of a model folder's configuration and weights."""
    if path.is_file():
        return _sha256(path)
    parts = sorted([*path.glob("*.safetensors"), path / "config.json"])
    whole = "".join(f"{part.name} {_sha256(part)}\n" for part in parts if part.is_file())
    return hashlib.sha256(whole.encode()).hexdigest()


def _opened_at(path: Path, size: int) -> Any:
    """Opened to append after its first `size` bytes; what a killed run wrote behind them goes."""
    with path.open("ab"):
        pass
    file = path.open("r+b")
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise InputError(
            f"{path} is shorter than {path.parent / UNFINISHED} says: remove the folder"
        )
    file.truncate(size)
    file.seek(size)
    return file


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    for name, sha256 in expected.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: record the answers again")
        if _sha256(folder / name) != sha256:
            raise InputError(
                f"{folder / name} is damaged (sha256 differs): record the answers again"
            )


def _made(document: Mapping[str, Any], folder: Path) -> Made:
    if document.get("format") != FORMAT:
        raise InputError(
            f"{folder} has format {document.get('format')!r}, this version reads {FORMAT}: "
            "record the answers again"
        )
    try:
        names = {name: document[name] for name in Made.__dataclass_fields__}
    except KeyError as error:
        raise InputError(f"{folder}: {error} is missing: record the answers again") from None
    return replace(Made(**names), with_adapter=tuple(names["with_adapter"]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        hint = "go on with the run that records it, and --resume"
        if not (path.parent / UNFINISHED).is_file():
            hint = "make one with `cmc-local record`"
        raise InputError(f"{path.parent} holds no finished table of answers: {hint}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): record the answers again") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is no table of answers: record the answers again")
    return document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_bytes(made: Made) -> int:
    """Bytes of a position in all files."""
    return made.stride() + 8
