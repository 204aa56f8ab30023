"""Adapters on a hub: fetched (`delta/adapter.py` checks the hashes), and shared in one commit.

    found = pull("user/repo@v2")             # an adapter.Adapter in the cache
    url = push("my-adapter", "user/repo")    # private, unless public=True

A fetched adapter passes through `adapter.load` like any other: only files that the format knows
are asked for, none larger than adapter.json says, and none is executed. In the cache it is a
folder of plain files, `adapters/COMMIT` in the repository's own, that share their content with the
cache's. It knows nothing of deltas.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from cmc_local import offline
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter
from cmc_local.errors import AdapterError, InputError, UsageError
from cmc_local.hub import files as hub
from cmc_local.hub.errors import explained

_FILES: Final = (*adapter.GRAPHS.values(), adapter.TOKENIZER_FILE, adapter.CARD_FILE)
_SETTINGS_BYTES = 1 << 20
_FILE_BYTES = 1 << 31  # an ONNX graph without external data cannot be larger


def pull(text: str, to: Path | None = None, *, overwrite: bool = False) -> Adapter:
    """The adapter that `[hf:]user/repo[@revision]` names, checked; with `to`, written there.

    An adapter that is already at `to` is replaced only with `overwrite`. Raises UsageError,
    InputError, and AdapterError where what came is no sound adapter.
    """
    where = hub.parse(text)
    if where.detail:
        raise UsageError(f"{text}: write USER/REPO or USER/REPO@REVISION, nothing after a colon")
    if to is not None:
        adapter.check_target(to, overwrite=overwrite)
    found = _in_cache(where)
    if to is None:
        return found
    files: dict[str, bytes | Path] = {name: found.path / name for name in found.settings.files}
    return adapter.write(to, found.settings, files, overwrite=overwrite)


def push(folder: str | Path, text: str, *, public: bool = False) -> str:
    """Check an adapter and upload it in one commit; the repository's URL.

    The repository is made if there is none, private unless `public`. A public one takes an adapter
    only with `public`. Graphs that the folder no longer has are removed. Raises UsageError,
    InputError, AdapterError.
    """
    where = hub.parse(text)
    if where.detail or where.revision != hub.MAIN:
        raise UsageError(f"{text}: an adapter is pushed to USER/REPO, without @ and colon")
    found = adapter.load(folder)
    if offline.wanted():
        raise InputError(f"cannot push to {where}: --offline or {offline.VARIABLE} is set")
    client = hub.api()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    with explained(str(where)), nullcontext() if sys.stderr.isatty() else disable_progress_bars():
        there: set[str] = set()
        try:
            info = client.model_info(where.repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            client.create_repo(where.repo, private=not public, exist_ok=True)
        else:
            if not public and not info.private:
                raise UsageError(f"{where} is public: add --public to push there")
            there = {one.rfilename for one in info.siblings or ()}
        names = (adapter.SETTINGS_FILE, *found.settings.files)
        stale = sorted(there & set(_FILES) - set(names) - {adapter.CARD_FILE})
        client.create_commit(
            where.repo,
            [CommitOperationAdd(name, str(found.path / name)) for name in names]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=f"Adapter {found.settings.name}".strip(),
        )
        return f"{client.endpoint}/{where.repo}"


def in_cache() -> Iterator[tuple[str, Path]]:
    """Every adapter that was fetched: `user/repo@commit` and its folder."""
    for folder in sorted(hub.cache_folder().glob("models--*--*/adapters/*")):
        if (folder / adapter.SETTINGS_FILE).is_file() and not folder.name.startswith("."):
            repo = folder.parts[-3].removeprefix("models--").replace("--", "/", 1)
            yield f"{repo}@{folder.name}", folder


# --- into the cache ----------------------------------------------------------------------------


def _in_cache(where: hub.Reference) -> Adapter:
    pinned = _folder(where, where.revision)
    if pinned.is_dir():  # a commit never changes: nothing to ask
        return adapter.load(pinned)
    failure: InputError | None = None
    for snapshot in hub.look_up(where):
        folder = _folder(where, snapshot.commit)
        try:
            return adapter.load(folder) if folder.is_dir() else _placed(snapshot, folder)
        except InputError as error:
            failure = failure or error
    assert failure is not None  # a look-up is never empty
    raise failure


def _folder(where: hub.Reference, commit: str) -> Path:
    return hub.repo_folder(where.repo) / "adapters" / commit


def _placed(snapshot: hub.Snapshot, folder: Path) -> Adapter:
    """Fetch what adapter.json lists, check it, rename it into place."""
    if adapter.SETTINGS_FILE not in snapshot.files:
        raise AdapterError(f"{snapshot.where} is no adapter: it has no {adapter.SETTINGS_FILE}")
    limit = {adapter.SETTINGS_FILE: _SETTINGS_BYTES}
    settings = hub.fetch(snapshot, [adapter.SETTINGS_FILE], limit)[0]
    sizes = _listed(settings)
    paths = hub.fetch(snapshot, list(sizes), sizes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        for name, path in zip((adapter.SETTINGS_FILE, *sizes), (settings, *paths), strict=True):
            _put(path.resolve(), staging / name)
        try:
            adapter.load(staging)
        except AdapterError as error:
            raise AdapterError(str(error).replace(str(staging), str(snapshot.where))) from error
        staging.chmod(0o755)
        if not folder.is_dir():  # another process may have been faster
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return adapter.load(folder)


def _listed(settings: Path) -> dict[str, int]:
    """The format's files that adapter.json lists and their sizes; what else is wrong, load says."""
    try:
        files = json.loads(settings.read_bytes())["files"]
        sizes = {name: files[name]["bytes"] for name in _FILES if name in files}
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    return {name: min(size, _FILE_BYTES) for name, size in sizes.items() if isinstance(size, int)}


def _put(path: Path, target: Path) -> None:
    """The same content under a second name, copied where the file system has no such thing."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
