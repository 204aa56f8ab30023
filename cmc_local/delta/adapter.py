"""The adapter folder: a delta packed for use, read only after every hash and size agrees.

    my-adapter/
      adapter.json       AdapterSettings; names, sizes and sha256 of the files below
      delta.onnx         the graph in fp32; delta.int8.onnx and delta.fp16.onnx beside it, or
                         in its place: one of them is enough
      tokenizer.json     the delta's tokenizer
      README.md          the card

Nothing here is executed, and this module opens no graph: it knows files, sizes and hashes.
Every AdapterError names the file and the next step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cmc_local.errors import AdapterError, UsageError
from cmc_local.text.prompts import PromptForm, Turns

FORMAT_VERSION = 1
Precision = Literal["fp32", "int8", "fp16"]
Normalization = Literal["add", "normalization", "basenormalization"]

SETTINGS_FILE = "adapter.json"
GRAPHS: Mapping[Precision, str] = {
    "fp32": "delta.onnx",
    "int8": "delta.int8.onnx",
    "fp16": "delta.fp16.onnx",
}
_EXACT_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
_KNOWN = frozenset((*GRAPHS.values(), TOKENIZER_FILE, CARD_FILE))
_MAX_SETTINGS_BYTES = 1 << 20
_EXPORT_AGAIN = "copy the adapter again or export it anew with `cmc-local export`"


@dataclass(frozen=True, kw_only=True)
class DeltaShape:
    """Sizes of a llama-architecture delta; `context` is in tokens."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    context: int


@dataclass(frozen=True)
class TemplateName:
    """The template model that the delta was trained beside."""

    name: str = ""
    vocabulary: str = ""
    """Its vocabulary's fingerprint (sha256 hex); empty when unknown."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the folder must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What adapter.json says."""

    name: str
    shape: DeltaShape
    prompt: PromptForm
    turns: Turns = "all"
    alpha: float = 1.0
    thinking: tuple[str, ...] = ()
    """What begins and what ends thoughts in the answers that it learned; empty: there are none."""
    normalization: Normalization = "basenormalization"
    template: TemplateName = field(default_factory=TemplateName)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of the training run, for people; JSON values."""
    verification: Mapping[str, Any] = field(default_factory=dict)
    """By precision: how the graph compared with PyTorch when it was exported."""
    license: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    format: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of adapter.json, keys in a fixed order."""
        fields = {"format": self.format, **asdict(self)}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Adapter:
    """A folder whose files were all as adapter.json says."""

    path: Path
    settings: AdapterSettings

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that this adapter carries a graph for."""
        return tuple(p for p, name in GRAPHS.items() if name in self.settings.files)

    @property
    def most_exact(self) -> Precision:
        """The precision that is nearest to the delta as it was trained, of those there."""
        return next(p for p in _EXACT_FIRST if p in self.precisions)

    def graph(self, precision: Precision) -> Path:
        """The ONNX file of one precision."""
        name = GRAPHS[precision]
        if name not in self.settings.files:
            raise AdapterError(
                f"{self.path} has no {precision} graph ({name}); it has "
                f"{', '.join(self.precisions)}: choose one of these or export it anew"
            )
        return self.path / name

    def read(self, name: str) -> bytes:
        """The bytes of one listed file, checked again: what is used is what was hashed."""
        record = self.settings.files.get(name)
        if record is None:
            raise AdapterError(f"{self.path} has no {name}: {_EXPORT_AGAIN}")
        data = (self.path / name).read_bytes()
        if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
            raise AdapterError(f"{self.path / name} changed after it was checked: load it again")
        return data

    @property
    def tokenizer_json(self) -> bytes:
        """The delta's tokenizer (Hugging Face tokenizers format)."""
        return self.read(TOKENIZER_FILE)


def load(path: str | Path) -> Adapter:
    """Read an adapter folder; raises AdapterError unless every file is as recorded."""
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} is not an adapter folder: give the folder that holds {SETTINGS_FILE}"
        )
    settings = _read_settings(folder)
    for name, record in settings.files.items():
        _check_file(folder / name, record)
    _refuse_strangers(folder, settings)
    return Adapter(folder, settings)


def write(
    folder: str | Path,
    settings: AdapterSettings,
    files: Mapping[str, bytes | Path],
    *,
    overwrite: bool = False,
) -> Adapter:
    """Write an adapter whole or not at all: a temporary folder beside it, renamed into place.

    `files` maps names of the folder to their content; `settings.files` is computed here. An
    adapter that is already there is replaced only with `overwrite`; anything else never is.
    """
    target = Path(folder)
    check_target(target, overwrite=overwrite)
    _check_names(target, files)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(target) as staging:
        records = {name: _put(staging / name, content) for name, content in files.items()}
        final = replace(settings, files=records, format=FORMAT_VERSION)
        _put(staging / SETTINGS_FILE, final.to_json().encode())
        load(staging)
        _rename_into_place(staging, target)
    return load(target)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a place where `write` must not write; early, before an export's work."""
    if not os.path.lexists(target):
        return
    if not (target / SETTINGS_FILE).is_file():
        raise AdapterError(f"{target} exists and is not an adapter: choose another folder")
    if not overwrite:
        raise AdapterError(f"{target} exists: choose another folder, or --overwrite to replace it")


# --- reading ---------------------------------------------------------------------------------


def _read_settings(folder: Path) -> AdapterSettings:
    path = folder / SETTINGS_FILE
    size = _regular_size(path)
    if size > _MAX_SETTINGS_BYTES:
        raise AdapterError(f"{path} has {size} bytes, far too many: {_EXPORT_AGAIN}")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} is not JSON: {_EXPORT_AGAIN}") from None
    if not isinstance(document, dict):
        raise AdapterError(f"{path} is not a JSON object: {_EXPORT_AGAIN}")
    _check_format(path, document.get("format"))
    try:
        settings = _settings_from(document)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise AdapterError(f"{path}: {_reason(error)}: {_EXPORT_AGAIN}") from None
    _check_names(folder, settings.files)
    return settings


def _check_format(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise AdapterError(f"{path} says no format version (`format`): {_EXPORT_AGAIN}")
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"{path} is of format {version}, newer than this version reads ({FORMAT_VERSION}): "
            "upgrade with `pip install --upgrade cmc-local`"
        )


def _settings_from(document: dict[str, Any]) -> AdapterSettings:
    settings = AdapterSettings(
        name=_typed(document, "name", str),
        shape=DeltaShape(**_typed(document, "shape", dict)),
        prompt=PromptForm(**_typed(document, "prompt", dict)),
        turns=_typed(document, "turns", str),
        alpha=float(_typed(document, "alpha", (int, float))),
        thinking=_marks(document.get("thinking", [])),
        normalization=_typed(document, "normalization", str),
        template=TemplateName(**_typed(document, "template", dict)),
        training=_typed(document, "training", dict),
        verification=_typed(document, "verification", dict),
        license=_typed(document, "license", str),
        files={name: FileRecord(**r) for name, r in _typed(document, "files", dict).items()},
        format=document["format"],
    )
    for what, size in asdict(settings.shape).items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"shape says {what} is {size!r}, not a positive whole number")
    if settings.turns not in get_args(Turns):
        raise ValueError(f"turns is {settings.turns!r}, not one of {', '.join(get_args(Turns))}")
    if settings.normalization not in get_args(Normalization):
        raise ValueError(f"normalization {settings.normalization!r} is unknown")
    return settings


def _marks(value: Any) -> tuple[str, ...]:
    is_pair = isinstance(value, list) and len(value) in (0, 2)
    if not is_pair or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError("thinking is not two texts, what begins thoughts and what ends them")
    return tuple(value)


def _typed(document: dict[str, Any], key: str, kind: Any) -> Any:
    if not isinstance(document[key], kind) or isinstance(document[key], bool):
        raise ValueError(f"`{key}` has the wrong type")
    return document[key]


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _check_names(folder: Path, names: Mapping[str, object]) -> None:
    """Only the files of the format, by plain name; a tokenizer and at least one graph."""
    for name in names:
        if name not in _KNOWN:
            raise AdapterError(
                f"{folder / SETTINGS_FILE} lists {name!r}, which is no file of an adapter "
                f"({', '.join(sorted(_KNOWN))}): {_EXPORT_AGAIN}"
            )
    if TOKENIZER_FILE not in names or not names.keys() & set(GRAPHS.values()):
        raise AdapterError(
            f"{folder / SETTINGS_FILE} must list {TOKENIZER_FILE} and a graph: {_EXPORT_AGAIN}"
        )


def _check_file(path: Path, record: FileRecord) -> None:
    size = _regular_size(path)
    if size != record.bytes:
        raise AdapterError(
            f"{path} has {size} bytes, not {record.bytes}: it was cut short or changed; "
            f"{_EXPORT_AGAIN}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record.sha256:
        raise AdapterError(f"{path} does not match its sha256 in adapter.json: {_EXPORT_AGAIN}")


def _regular_size(path: Path) -> int:
    """Size in bytes of a regular file, links not followed."""
    try:
        status = path.lstat()
    except OSError:
        raise AdapterError(f"{path} is missing: {_EXPORT_AGAIN}") from None
    if not stat.S_ISREG(status.st_mode):
        raise AdapterError(f"{path} is a link or no plain file: put the file itself there")
    return status.st_size


def _refuse_strangers(folder: Path, settings: AdapterSettings) -> None:
    """A file that no hash covers is refused; hidden ones (.gitattributes) are nobody's input."""
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if name != SETTINGS_FILE and name not in settings.files and not name.startswith("."):
            raise AdapterError(f"{entry} is not listed in adapter.json: remove it from the folder")


# --- writing ---------------------------------------------------------------------------------


def _put(path: Path, content: bytes | Path) -> FileRecord:
    """Write or copy one file to disk for good; its record."""
    with path.open("xb") as out:
        if isinstance(content, bytes):
            out.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, out)
        out.flush()
        os.fsync(out.fileno())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(digest, path.stat().st_size)


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A new folder on the target's file system; gone afterwards unless it was renamed."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rename_into_place(staging: Path, target: Path) -> None:
    """Rename; an adapter already there steps aside first and comes back if that fails."""
    if not target.exists():
        staging.rename(target)
        return
    with _folder_beside(target) as aside:
        old = aside / "old"
        target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            old.rename(target)
            raise
