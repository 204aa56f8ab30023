"""The hub and its cache, against a fake on loopback: what is fetched, when, and what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cmc_local.errors import InputError, UsageError
from cmc_local.hub import adapters as hub_adapter
from cmc_local.hub import files as hub
from cmc_local.hub import gguf as hub_gguf
from fake_hub import FakeHub, digest

SPLIT = [f"BF16/m-BF16-0000{number}-of-00003.gguf" for number in (3, 1, 2)]
WEIGHTS = bytes(range(256)) * 20  # 5,120 bytes, five chunks of those that the tests take


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- names -------------------------------------------------------------------------------------


def test_a_reference_has_a_repository_a_revision_and_a_detail() -> None:
    assert hub.parse("hf:user/repo") == hub.Reference("user/repo")
    assert hub.parse("user/re.po_1@v2:Q8_0") == hub.Reference("user/re.po_1", "v2", "Q8_0")


@pytest.mark.parametrize(
    "text",
    [
        *("", "user", "user/", "/repo", "a/b/c", "user/../x", "user/a..b", "user/a--b"),
        *("user/repo@", "user/repo@../x", "user/repo@/etc", "user/repo:", "user/re po"),
    ],
)
def test_what_is_no_reference_is_wrong_use(text: str) -> None:
    with pytest.raises(UsageError, match="names no repository of a hub: write USER/REPO"):
        hub.parse(text)


def test_the_cache_is_where_llama_cpp_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [
        ("LLAMA_CACHE", "/1", "/1"),
        ("HF_HUB_CACHE", "/2", "/2"),
        ("HUGGINGFACE_HUB_CACHE", "/3", "/3"),
        ("HF_HOME", "/4", "/4/hub"),
        ("XDG_CACHE_HOME", "/5", "/5/huggingface/hub"),
        ("HOME", "/6", "/6/.cache/huggingface/hub"),
    ]
    for variable, value, _ in order:
        monkeypatch.setenv(variable, value)
    for variable, _, expected in order:  # each is asked once those before it are gone
        assert hub.cache_folder() == Path(expected)
        monkeypatch.delenv(variable)


# --- downloading -------------------------------------------------------------------------------


def test_a_model_is_downloaded_once(fake: FakeHub) -> None:
    commit = fake.add("user/m", {"m-Q8_0.gguf": b"other", "m-Q4_K_M.gguf": WEIGHTS})
    path = hub_gguf.fetch("user/m")
    assert path.read_bytes() == WEIGHTS
    # The layout that huggingface_hub and llama.cpp read: snapshots/COMMIT/NAME, blobs, refs.
    home = hub.cache_folder() / "models--user--m"
    assert path == home / "snapshots" / commit / "m-Q4_K_M.gguf"
    assert path.resolve() == home / "blobs" / digest(WEIGHTS)
    assert (home / "refs" / "main").read_text() == commit
    assert len(fake.downloads()) == 1
    assert hub_gguf.fetch("hf:user/m:Q4_K_M") == path
    # A new commit with the same file under the same hash: another snapshot, no download.
    later = fake.add("user/m", {"README.md": b"new", "m-Q4_K_M.gguf": WEIGHTS})
    assert hub_gguf.fetch("user/m") == home / "snapshots" / later / "m-Q4_K_M.gguf"
    assert len(fake.downloads()) == 1


def test_a_split_model_comes_whole(fake: FakeHub) -> None:
    fake.add("user/m", {name: name.encode() * 9 for name in SPLIT})
    first = hub_gguf.fetch("user/m")
    assert first.name == "m-BF16-00001-of-00003.gguf"
    assert content(first.parent) == {Path(name).name: name.encode() * 9 for name in SPLIT}


def test_a_broken_download_goes_on_where_it_was(fake: FakeHub) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    fake.cuts = [2500, 1100]
    # Two whole chunks of 1,024 bytes come of the first 2,500, one of the next 1,100.
    assert hub_gguf.fetch("user/m").read_bytes() == WEIGHTS
    assert [one.range for one in fake.downloads()] == [None, "bytes=2048-", "bytes=3072-"]


def test_what_came_damaged_is_found_by_its_hash_and_thrown_away(fake: FakeHub) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    fake.objects[digest(WEIGHTS)] = WEIGHTS[::-1]
    with pytest.raises(InputError, match=r"m\.gguf was damaged on its way"):
        hub_gguf.fetch("user/m")
    fake.objects[digest(WEIGHTS)] = WEIGHTS
    assert hub_gguf.fetch("user/m").read_bytes() == WEIGHTS


def test_what_is_not_of_the_announced_size_is_refused(fake: FakeHub) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    fake.extra = b"x" * 5000
    with pytest.raises(InputError, match=r"no usable answer about m\.gguf .* 5120 .* 10120"):
        hub_gguf.fetch("user/m")
    home = hub.cache_folder() / "models--user--m"
    assert not list((home / "blobs").iterdir()) + list(home.rglob("*.gguf"))


def test_a_full_disk_is_told_before_the_download(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    room = type("Usage", (), {"free": 5119})
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _path: room)
    with pytest.raises(InputError, match="make room, or name another folder with HF_HUB_CACHE"):
        hub_gguf.fetch("user/m")
    assert not fake.downloads()


def test_the_token_goes_to_the_hub_and_no_further(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    fake.token = "secret"
    fake.add("user/m", {"m.gguf": WEIGHTS})
    fake.repositories["user/m"].private = True
    hub_gguf.fetch("user/m")
    assert {one.token for one in fake.seen if "/cdn/" not in one.path} == {"secret"}
    assert [one.token for one in fake.downloads()] == [None]


@pytest.mark.parametrize(
    ("asked", "token", "told"),
    [
        ("user/none", None, "has no user/none that you may read: check the name; a private one"),
        ("user/m@v9", None, "there is no revision user/m@v9: check what stands after the @"),
        ("user/gated", None, r"user/gated is gated: accept its terms on its page"),
        ("user/private", None, "has no user/private that you may read"),
        ("user/m", "wrong", "does not accept the token: look at HF_TOKEN"),
        ("user/m:Q2_K", None, r"user/m: no GGUF of 'Q2_K' is there: choose one of m\.gguf"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, asked: str, token: str | None, told: str
) -> None:
    fake.token = "right"
    for name in ("m", "gated", "private"):
        fake.add(f"user/{name}", {"m.gguf": WEIGHTS})
    fake.repositories["user/gated"].gated = fake.repositories["user/private"].private = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=told) as error:
        hub_gguf.fetch(asked)
    assert "\n" not in str(error.value)


def test_trouble_on_the_way_is_one_line(fake: FakeHub) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    fake.statuses = [503]
    with pytest.raises(InputError, match=r"failed \(503\): try again later") as error:
        hub_gguf.fetch("user/m")
    assert "\n" not in str(error.value)


def test_names_that_lead_out_of_the_folder_are_not_seen(fake: FakeHub) -> None:
    fake.add("user/m", {"../../evil.gguf": b"x", "/etc/evil.gguf": b"x", "C:\\evil.gguf": b"x"})
    with pytest.raises(InputError, match="no GGUF model is there"):
        hub_gguf.fetch("user/m")


def test_an_answer_that_is_no_hubs_is_refused(fake: FakeHub) -> None:
    fake.add("user/m", {"m.gguf": WEIGHTS})
    repository = fake.repositories["user/m"]
    repository.commits["../../evil"] = repository.commits[repository.names["main"]]
    repository.names["main"] = "../../evil"
    with pytest.raises(InputError, match=r"gave no usable answer about user/m \(no commit"):
        hub_gguf.fetch("user/m")


# --- without network ---------------------------------------------------------------------------


def test_the_cache_stands_in_where_the_hub_cannot_be_reached(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add("user/m", {"m-Q8_0.gguf": WEIGHTS, "m-Q2_K.gguf": WEIGHTS[::-1]})
    path = hub_gguf.fetch("user/m:Q8_0")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert hub_gguf.fetch("user/m") == path
    assert f"cannot reach http://127.0.0.1:{port}; taking user/m from the cache" in caplog.text
    with pytest.raises(InputError, match=rf"cannot reach http://127.0.0.1:{port}: look at the ne"):
        hub_gguf.fetch("user/other")


def test_offline_an_earlier_snapshot_serves_too(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add("user/m", {"m-Q8_0.gguf": WEIGHTS})
    eight = hub_gguf.fetch("user/m")
    fake.add("user/m", {"m-Q8_0.gguf": WEIGHTS, "m-Q4_K_M.gguf": WEIGHTS[::-1]})
    four = hub_gguf.fetch("user/m")
    asked = len(fake.seen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_gguf.fetch("user/m:Q8_0") == eight
    assert hub_gguf.fetch("user/m") == four
    with pytest.raises(InputError, match="user/m in the cache: no GGUF of 'Q2_K' is there: ch"):
        hub_gguf.fetch("user/m:Q2_K")
    with pytest.raises(InputError, match=r"user/other is not in the cache .*: run once without"):
        hub_gguf.fetch("user/other")
    assert len(fake.seen) == asked


WATCHED = """
import sys
events = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and events.append(event))
from cmc_local.commands import main
try:
    main(sys.argv[1:])
finally:
    print("sockets:", len(events), file=sys.stderr)
    print("hub:", "huggingface_hub" in sys.modules, file=sys.stderr)
"""


def watched(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that counts what happens to sockets."""
    variables = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | environment
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *words], capture_output=True, text=True, env=variables
    )


def generate(*words: str) -> list[str]:
    question = "Where does Flora Whitemark live?"
    return ["generate", *words, "--temperature", "0", "--threads", "1", "-n", "16", question]


def test_offline_no_socket_is_opened(fake: FakeHub, bundled_models: Path) -> None:
    fake.add("user/base", {"m-Q8_0.gguf": (bundled_models / "template.gguf").read_bytes()})
    fake.add("user/adapter", content(bundled_models / "instruct"))
    hub_gguf.fetch("user/base")
    hub_adapter.pull("user/adapter")
    asked = len(fake.seen)
    local = watched(*generate("-m", "template", "-a", "instruct", "--offline"))
    cached = watched(*generate("-hf", "user/base:Q8_0", "-a", "hf:user/adapter", "--offline"))
    for done in (local, cached):
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("sockets: 0\nhub: False\n")
    assert cached.stdout == local.stdout != ""
    missing = watched(*generate("-hf", "user/other"), "--offline")
    assert missing.returncode == 1
    first, *rest = missing.stderr.splitlines()
    assert first.startswith("cmc-local: error: user/other is not in the cache (")
    assert rest == ["sockets: 0", "hub: False"]
    assert len(fake.seen) == asked
    online = watched(*generate("-hf", "user/base"))  # the counter counts
    assert "sockets: 0" not in online.stderr
    assert online.returncode == 0, online.stderr
    assert "it/s" not in online.stderr and "B/s" not in online.stderr  # no bar without a terminal
