"""A model hub and its cache on this machine: which files a repository has, and where they lie.

    where = parse("user/repo@v2:Q8_0")       # repository, revision, and what is asked of it
    found = look_up(where)                   # Snapshots: one from the hub, or those in the cache
    paths = fetch(found[0], ["model.gguf"])  # files in the cache, downloaded if need be

The hub is the one that HF_ENDPOINT names, the token HF_TOKEN's; the cache has the layout that
huggingface_hub and llama.cpp share, in the folder that llama.cpp would choose. Offline, nothing
here touches the network (`offline`), and nothing imports huggingface_hub. It knows neither models
nor adapters. Every failure is an InputError of one line.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from cmc_local import files, offline
from cmc_local.errors import InputError, UsageError
from cmc_local.hub.errors import HubUnreachable, explained

PREFIX: Final = "hf:"
MAIN: Final = "main"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 10.0

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_log = logging.getLogger("cmc_local")


@dataclass(frozen=True, slots=True)
class Reference:
    """`USER/REPO[@REVISION][:DETAIL]`; the detail is a quantisation or a strength."""

    repo: str
    revision: str = MAIN
    detail: str = ""

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit.

    With `cached` they are those that the cache holds, maybe not all.
    """

    where: Reference
    commit: str
    files: Mapping[str, int]
    """Name -> size in bytes, 0 if unknown."""
    cached: bool
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Name -> sha256 in hex, of the files for which the hub says it."""


def parse(text: str) -> Reference:
    """Read a reference, with or without `hf:`; UsageError for what is none."""
    body = text.strip().removeprefix(PREFIX)
    place, colon, detail = body.partition(":")
    repo, at, revision = place.partition("@")
    named = _NAME.fullmatch(repo) and ".." not in repo and "--" not in repo
    versioned = _REVISION.fullmatch(revision) and ".." not in revision
    if not named or (at and not versioned) or (colon and not detail.strip()):
        raise UsageError(
            f"{text!r} names no repository of a hub: write USER/REPO, USER/REPO@REVISION or "
            "USER/REPO:QUANT"
        )
    return Reference(repo, revision or MAIN, detail.strip())


def cache_folder() -> Path:
    """Where downloads are kept: the first that is set, in llama.cpp's order."""
    places = (
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    )
    for variable, below in places:
        if named := os.environ.get(variable):
            return Path(named).expanduser() / below
    return Path.home() / ".cache" / "huggingface" / "hub"


def repo_folder(repo: str) -> Path:
    """A repository's own folder in the cache."""
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def look_up(where: Reference) -> Sequence[Snapshot]:
    """What a repository holds: asked of the hub, else of the cache (never empty).

    The cache answers offline and where the hub cannot be reached, in the order in which its
    snapshots count: the revision's own, then, of the main branch, earlier ones.
    """
    if offline.wanted():
        if found := _cached(where):
            return found
        raise InputError(
            f"{where} is not in the cache ({cache_folder()}), and --offline or {offline.VARIABLE} "
            "keeps it from being fetched: run once without"
        )
    try:
        with explained(str(where)):
            return [_listed(where)]
    except HubUnreachable as error:
        found = _cached(where)
        if not found:
            raise
        _log.warning("%s; taking %s from the cache", str(error).split(": ")[0], where)
        return found


def fetch(
    snapshot: Snapshot, names: Sequence[str], limits: Mapping[str, int] | None = None
) -> list[Path]:
    """The files in the cache, downloaded where they are missing; `limits` are in bytes.

    A progress bar goes to stderr where that is a terminal. A download that breaks off goes on where
    it was, unless the program ends too. What came is checked against its sha256, if that is known.
    """
    where = snapshot.where
    folder = repo_folder(where.repo) / "snapshots" / snapshot.commit
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and snapshot.cached:
        raise InputError(f"{missing[0]} of {where} is not in the cache: run once with network")
    for name in missing:
        size, limit = snapshot.files.get(name, 0), (limits or {}).get(name)
        if limit is not None and size > limit:
            raise InputError(f"{name} of {where} has {size} bytes, more than {limit}: refused")
    _check_room(snapshot, missing)
    for name in missing:
        with explained(f"{name} of {where}"):
            _download(snapshot, name)
    if not snapshot.cached and where.revision != snapshot.commit:  # for a later run offline
        files.write_text(repo_folder(where.repo) / "refs" / where.revision, snapshot.commit)
    return [folder / name for name in names]


def api() -> HfApi:
    """The hub's client, for the endpoint that the environment names now."""
    # Downloading should not tell anyone what else is installed here.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what goes wrong is said once, by us
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)


# --- what there is -----------------------------------------------------------------------------


def _listed(where: Reference) -> Snapshot:
    info = api().model_info(
        where.repo, revision=where.revision, files_metadata=True, timeout=_SECONDS
    )
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise ValueError(f"no commit in the answer about {where}")
    found = [one for one in info.siblings or () if _is_inside(one.rfilename)]
    hashes = {one.rfilename: one.lfs.sha256 for one in found if one.lfs is not None}
    return Snapshot(where, info.sha, {one.rfilename: one.size or 0 for one in found}, False, hashes)


def _is_inside(name: str) -> bool:
    """Whether a name stays below the folder that it is put in, on every system."""
    parts = PurePosixPath(name).parts
    plain = not any(letter in name for letter in '\\:\0"*?<>|')
    return bool(parts) and plain and parts[0] != "/" and ".." not in parts


def _cached(where: Reference) -> list[Snapshot]:
    home = repo_folder(where.repo)
    pinned = where.revision if _COMMIT.fullmatch(where.revision) else _reference(home, where)
    commits = [pinned] if pinned else []
    if where.revision == MAIN and (home / "snapshots").is_dir():
        rest = (p for p in (home / "snapshots").iterdir() if _COMMIT.fullmatch(p.name))
        newest = sorted(rest, key=lambda p: p.stat().st_mtime, reverse=True)
        commits += [p.name for p in newest if p.name != pinned]
    snapshots = []
    for commit in commits:
        folder = home / "snapshots" / commit
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        if sizes:
            snapshots.append(Snapshot(where, commit, sizes, True))
    return snapshots


def _reference(home: Path, where: Reference) -> str:
    try:
        commit = (home / "refs" / where.revision).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return commit if _COMMIT.fullmatch(commit) else ""


# --- downloading -------------------------------------------------------------------------------


def _check_room(snapshot: Snapshot, names: Sequence[str]) -> None:
    """Refuse a download that the disk cannot hold, less what another commit brought already."""
    blobs = repo_folder(snapshot.where.repo) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    new = [name for name in names if not (blobs / snapshot.hashes.get(name, " ")).is_file()]
    needed = sum(snapshot.files.get(name, 0) for name in new)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        raise InputError(
            f"{' and '.join(new)} of {snapshot.where} take {needed / 1e9:.2f} GB and {blobs} has "
            f"{free / 1e9:.2f} GB: make room, or name another folder with HF_HUB_CACHE"
        )


def _download(snapshot: Snapshot, name: str) -> None:
    path = Path(
        api().hf_hub_download(
            snapshot.where.repo, name, revision=snapshot.commit, cache_dir=cache_folder()
        )
    )
    expected = snapshot.hashes.get(name)
    with path.open("rb") as file:
        if expected in (None, hashlib.file_digest(file, "sha256").hexdigest()):
            return
    path.resolve().unlink()  # the content, where `path` is a link to it
    path.unlink(missing_ok=True)
    raise InputError(f"{name} was damaged on its way: run the same command again")
