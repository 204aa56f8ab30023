"""A model hub on loopback: the few endpoints that cmc_local uses, and the ways in which they fail.

    with FakeHub() as hub:
        hub.add("user/repo", {"model-Q8_0.gguf": b"..."})
        hub.url                        # for HF_ENDPOINT
        hub.seen                       # every request
        hub.cuts.append(100)           # the next download breaks off after 100 bytes

Model info, resolve, repository creation, pre-upload, LFS batch and upload, commit. Large files are
LFS: named by sha256, and sent, with ranges, from another host (the same server as `localhost`) that
must not see the token. A token, where one is set, must be given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest

LARGE = 64


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Seen:
    """A request and the status of its answer."""

    method: str
    path: str
    status: int
    range: str | None
    token: str | None


@dataclass
class Repository:
    """Files by revision; every commit is kept."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], name: str = "main") -> str:
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        self.commits[digest.hexdigest()] = dict(files)
        self.names[name] = digest.hexdigest()
        return digest.hexdigest()

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.names.get(revision)


class FakeHub:
    """The server, in a thread of its own between `with` and its end."""

    def __init__(self, token: str | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[Seen] = []
        self.cuts: list[int] = []
        """Bytes after which the next downloads break off, one each."""
        self.statuses: list[int] = []
        """Statuses of the next downloads (GET), one each, instead of the content."""
        self.token = token
        self.objects: dict[str, bytes] = {}
        self.extra = b""
        """Sent after the content of every file, beyond what was announced."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit a repository's files, all of them; the commit."""
        for data in files.values():
            self.objects[digest(data)] = data
        return self.repositories.setdefault(repo, Repository()).commit(files, revision)

    def downloads(self) -> list[Seen]:
        """Requests that were answered with content, or should have been."""
        gets = [one for one in self.seen if one.method == "GET" and one.status != 302]
        return [one for one in gets if "/resolve/" in one.path or "/cdn/" in one.path]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route(with_body=True)

    def do_HEAD(self) -> None:
        self.route(with_body=False)

    def do_POST(self) -> None:
        self.route(with_body=True)

    def do_PUT(self) -> None:
        self.route(with_body=True)

    def route(self, *, with_body: bool) -> None:
        self.with_body = with_body
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.said = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                answer(self, **found.groupdict())
                return
        self.send({"error": "no such page"}, 404)

    def send(
        self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        seen = Seen(self.command, self.path, status, self.headers.get("Range"), self.said)
        self.hub.seen.append(seen)
        self.send_response(status)
        fields = {"Content-Length": str(len(data)), **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.with_body:
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def repository(self, repo: str) -> Repository | None:
        """The repository, or None after a refusal."""
        if self.hub.token is not None and self.said is not None and self.said != self.hub.token:
            told = "Invalid credentials in Authorization header"
            self.send({"error": told}, 401, {"X-Error-Message": told})
            return None
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.said != self.hub.token):
            self.refuse(401 if self.said is None else 404, "RepoNotFound")
            return None
        if found.gated:
            self.refuse(403, "GatedRepo")
            return None
        return found

    # --- reading ---

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self.repository(repo)
        if found is None:
            return
        commit = found.at(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        files = found.commits[commit].items()
        siblings: list[dict[str, Any]] = []
        for name, data in files:
            siblings.append({"rfilename": name, "size": len(data)})
            if len(data) > LARGE:
                siblings[-1]["lfs"] = {"sha256": digest(data), "size": len(data), "pointerSize": 1}
        about = {"id": repo, "sha": commit, "private": found.private, "siblings": siblings}
        self.send(about)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.repository(repo)
        if found is None:
            return
        commit = found.at(revision)
        if commit is None or name not in found.commits[commit]:
            self.refuse(404, "RevisionNotFound" if commit is None else "EntryNotFound")
            return
        data = found.commits[commit][name]
        headers = {"X-Repo-Commit": commit}
        if len(data) > LARGE:
            oid = digest(data)
            headers["Location"] = f"http://localhost:{self.hub.server.server_port}/cdn/{oid}"
            headers["X-Linked-Etag"] = f'"{oid}"'
            headers["X-Linked-Size"] = str(len(data))
            self.send(b"", 302, headers)
        else:
            self.send(data, 200, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def content(self, oid: str) -> None:
        data = self.hub.objects[oid]
        if self.hub.statuses:
            self.send({"error": "trouble"}, self.hub.statuses.pop(0))
            return
        status, start, headers = 200, 0, {}
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(ranged[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:] + self.hub.extra
        if not self.hub.cuts:
            self.send(rest, status, headers)
            return
        self.close_connection = True
        cut = self.hub.cuts.pop(0)
        self.send(rest[:cut], status, {**headers, "Content-Length": str(len(rest))})

    # --- writing ---

    def allowed(self) -> bool:
        if self.hub.token is not None and self.said != self.hub.token:
            self.send({"error": "no"}, 401, {"X-Error-Message": "Invalid username or password."})
            return False
        return True

    def create(self) -> None:
        if not self.allowed():
            return
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        made = self.hub.repositories.setdefault(repo, Repository())
        made.private = asked.get("visibility") == "private" or asked.get("private") is True
        made.commit({".gitattributes": b"*.onnx filter=lfs\n"})
        self.send({"url": f"{self.hub.url}/{repo}"})

    def validate(self) -> None:
        self.send({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if not self.allowed():
            return
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] > LARGE else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(self.body)["files"]
        ]
        self.send({"files": files})

    def batch(self, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.send({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        whole = digest(self.body) == oid
        self.hub.objects[oid] = self.body
        self.send({}, 200 if whole else 422)

    def commit(self, repo: str, revision: str) -> None:
        found = self.hub.repositories[repo]
        files = dict(found.commits[found.names[revision]])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    found.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = found.commit(files, revision)
        self.send({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", rf"/api/models/{_REPO}", Answer.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", Answer.info),
    ("GET|HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Answer.resolve),
    ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", Answer.content),
    ("POST", r"/api/repos/create", Answer.create),
    ("POST", r"/api/validate-yaml", Answer.validate),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", Answer.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Answer.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Answer.store),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", Answer.commit),
)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeHub]:
    """A running hub that the environment names, and a cache of its own in `folder`."""
    from huggingface_hub import constants, file_download

    for variable in ("LLAMA_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(file_download.time, "sleep", lambda _seconds: None)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
