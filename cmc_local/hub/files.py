"""A model hub and its cache on this machine: which files a repository has, and where they lie.

    where = parse("user/repo@v2:Q8_0")       # repository, revision, and what is asked of it
    found = look_up(where)                   # Snapshots: one from the hub, or those in the cache
    paths = fetch(found[0], ["model.gguf"])  # files in the cache, downloaded if need be

The hub is the one that HF_ENDPOINT names, the token HF_TOKEN's; the cache has the layout that
huggingface_hub and llama.cpp share, in the folder that llama.cpp would choose. A download that
broke off goes on where it was, also in another process. Offline, nothing here touches the network
(`offline`), and nothing imports huggingface_hub. It knows neither models nor adapters.
Every failure is an InputError of one line.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from cmc_local import offline
from cmc_local.errors import InputError, UsageError
from cmc_local.hub.errors import HubUnreachable, explained

PREFIX: Final = "hf:"
MAIN: Final = "main"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
    """The files of a repository at one commit, with their sizes in bytes (0 if unknown).

    With `cached` they are those that the cache holds, maybe not all.
    """

    where: Reference
    commit: str
    files: Mapping[str, int]
    cached: bool


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
    snapshot: Snapshot, files: Sequence[str], limits: Mapping[str, int] | None = None
) -> list[Path]:
    """The files in the cache, downloaded where they are missing; `limits` are in bytes.

    A progress bar goes to stderr where that is a terminal. A file is checked against its sha256
    where the hub gives one.
    """
    ceilings = limits or {}
    paths = [_fetched(snapshot, name, ceilings.get(name)) for name in files]
    if not snapshot.cached and snapshot.where.revision != snapshot.commit:
        _remember(snapshot)
    return paths


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
    files = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    return Snapshot(where, info.sha, {n: s for n, s in files.items() if _is_inside(n)}, False)


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


def _remember(snapshot: Snapshot) -> None:
    """Note in the cache which commit the revision stood for."""
    path = repo_folder(snapshot.where.repo) / "refs" / snapshot.where.revision
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(snapshot.commit, encoding="utf-8")
    draft.replace(path)


# --- downloading -------------------------------------------------------------------------------


class _Bounded:
    """A file that refuses to grow beyond what was announced."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self._size = size
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._size:
            raise ValueError(f"more than the announced {self._size} bytes came")
        return int(self._file.write(data))


def _fetched(snapshot: Snapshot, name: str, limit: int | None) -> Path:
    home = repo_folder(snapshot.where.repo)
    path = home / "snapshots" / snapshot.commit / name
    if path.is_file():
        return path
    if snapshot.cached:
        raise InputError(f"{name} of {snapshot.where} is not in the cache: run once with network")
    with explained(f"{name} of {snapshot.where}"):
        return _downloaded(snapshot, name, limit)


def _downloaded(snapshot: Snapshot, name: str, limit: int | None) -> Path:
    hub = api()
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # made late

    repo, commit = snapshot.where.repo, snapshot.commit
    url = hf_hub_url(repo, name, revision=commit, endpoint=hub.endpoint)
    told = get_hf_file_metadata(url, timeout=_SECONDS, endpoint=hub.endpoint)
    size = told.size if told.size is not None else snapshot.files.get(name, 0)
    if not told.etag or not _ETAG.fullmatch(told.etag):
        raise ValueError(f"no usable ETag for {name}")
    if limit is not None and size > limit:
        raise InputError(f"{name} of {snapshot.where} has {size} bytes, more than {limit}: refused")
    blob = repo_folder(repo) / "blobs" / told.etag
    lock = cache_folder() / ".locks" / repo_folder(repo).name / f"{told.etag}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    if size <= constants.MAX_HTTP_DOWNLOAD_SIZE:  # above, only the library's own transfer can
        with WeakFileLock(lock):
            if not blob.is_file():
                _complete(url, blob, size, PurePosixPath(name).name)
    # The content lies there already; the library puts the name beside it as this system can.
    cache = str(cache_folder())
    path = hf_hub_download(repo, name, revision=commit, cache_dir=cache, endpoint=hub.endpoint)
    return Path(path)


def _complete(url: str, blob: Path, size: int, shown: str) -> None:
    """Download into `blob`.incomplete from where that ends; the blob is there when it is whole."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # made late

    part = blob.with_name(f"{blob.name}.incomplete")
    with part.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
            file.seek(0)
        have = file.tell()
        free = shutil.disk_usage(blob.parent).free
        if size - have > free:
            raise InputError(
                f"{shown} needs {_gigabytes(size - have)} more and {blob.parent} has "
                f"{_gigabytes(free)}: make room, or name another folder with HF_HUB_CACHE"
            )
        target: Any = _Bounded(file, size)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges count plain bytes
        http_get(
            url,
            target,
            resume_size=have,
            headers=headers,
            expected_size=size,
            displayed_filename=shown,
        )
    if _SHA256.fullmatch(blob.name) and _sha256(part) != blob.name:
        part.unlink()
        raise InputError(f"{shown} was damaged on its way: run the same command again")
    part.replace(blob)


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
