"""Adapters on the fake hub: pushed, pulled, and checked like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_local.delta import adapter
from cmc_local.delta.adapter import AdapterSettings, DeltaShape
from cmc_local.errors import AdapterError, InputError, UsageError
from cmc_local.hub import adapters as hub_adapter
from cmc_local.hub import files as hub
from cmc_local.text.prompts import PromptForm
from fake_hub import LARGE, FakeHub

WEIGHTS = bytes(range(256)) * 20
SETTINGS = AdapterSettings(
    name="small",
    shape=DeltaShape(
        vocabulary=5, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8, context=16
    ),
    prompt=PromptForm("cmc", "<|user|>\n{query}\n<|assistant|>\n"),
)
FILES: dict[str, bytes | Path] = {
    "delta.onnx": b"graph" * 30,
    "delta.int8.onnx": b"int8",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n# small\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adapter.write(tmp_path / "mine", SETTINGS, FILES).path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_adapter_is_pushed_in_one_commit_and_pulled_unchanged(
    fake: FakeHub, folder: Path, tmp_path: Path
) -> None:
    assert hub_adapter.push(folder, "user/small") == f"{fake.url}/user/small"
    repository = fake.repositories["user/small"]
    assert repository.private
    assert repository.messages == ["Adapter small"]
    found = hub_adapter.pull("user/small")
    assert content(found.path) == content(folder)
    assert found.path.is_relative_to(hub.cache_folder())
    assert not any(path.is_symlink() for path in found.path.iterdir())
    fetched = len(fake.downloads())
    written = hub_adapter.pull("hf:user/small@main", tmp_path / "there")
    assert content(written.path) == content(folder)
    assert len(fake.downloads()) == fetched
    assert list(hub_adapter.in_cache()) == [(f"user/small@{found.path.name}", found.path)]


def test_only_the_adapters_own_files_are_fetched(fake: FakeHub, folder: Path) -> None:
    fake.add("user/small", {**content(folder), "model.safetensors": WEIGHTS, "run.py": b"1/0"})
    found = hub_adapter.pull("user/small")
    assert content(found.path) == content(folder)
    assert len(fake.downloads()) == len(content(folder))


def test_a_later_push_replaces_and_removes(fake: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub_adapter.push(folder, "user/small", public=True)
    assert not fake.repositories["user/small"].private
    less = {name: data for name, data in FILES.items() if name != "delta.int8.onnx"}
    smaller = adapter.write(tmp_path / "smaller", SETTINGS, less).path
    with pytest.raises(UsageError, match="user/small is public: add --public to push there"):
        hub_adapter.push(smaller, "user/small")
    hub_adapter.push(smaller, "user/small", public=True)
    assert hub_adapter.pull("user/small").precisions == ("fp32",)
    repository = fake.repositories["user/small"]
    kept = set(repository.commits[repository.names["main"]])
    assert kept == {".gitattributes", "adapter.json", *less}


def test_a_damaged_adapter_is_not_pushed(fake: FakeHub, folder: Path) -> None:
    (folder / "delta.onnx").write_bytes(b"graph" * 29 + b"grape")
    with pytest.raises(AdapterError, match=r"delta\.onnx does not match its sha256"):
        hub_adapter.push(folder, "user/small")
    assert not fake.seen


def test_pushing_needs_a_token_and_network(
    fake: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "right"
    with pytest.raises(InputError, match=r"user/small .*set HF_TOKEN"):
        hub_adapter.push(folder, "user/small")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(fake.seen)
    with pytest.raises(InputError, match="cannot push to user/small: --offline or HF_HUB_OFFLINE"):
        hub_adapter.push(folder, "user/small")
    assert len(fake.seen) == asked


def with_settings(there: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    document = json.loads(there["adapter.json"]) | changes
    return {**there, "adapter.json": json.dumps(document).encode()}


def test_a_pulled_adapter_passes_the_same_checks(fake: FakeHub, folder: Path) -> None:
    good = content(folder)
    same_size = b"grape" * 30
    assert len(same_size) > LARGE
    listed = json.loads(good["adapter.json"])["files"]
    evil = {**listed, "../../evil": listed["delta.onnx"]}
    cases = [
        ({**good, "delta.onnx": same_size}, r"user/small/delta\.onnx does not match its sha256"),
        ({**good, "delta.onnx": b"graph"}, r"user/small/delta\.onnx has 5 bytes, not 150"),
        ({**good, "delta.onnx": WEIGHTS}, r"delta\.onnx of user/small has 5120 bytes, more than"),
        ({**good, "adapter.json": b"[" * 99}, r"user/small/adapter\.json is not JSON"),
        ({**good, "adapter.json": b" " * ((1 << 20) + 1)}, r"1048577 bytes, more than 1048576"),
        (with_settings(good, files=evil), r"user/small/adapter\.json lists '\.\./\.\./evil'"),
        (with_settings(good, format=99), r"adapter\.json is of format 99, newer than"),
        ({"m.gguf": WEIGHTS}, r"user/small is no adapter: it has no adapter\.json"),
    ]
    for files, told in cases:
        fake.add("user/small", files)
        with pytest.raises(InputError, match=told) as error:
            hub_adapter.pull("user/small")
        assert "\n" not in str(error.value)
        assert not list(hub_adapter.in_cache())
    assert not list(hub.cache_folder().rglob("evil"))
    fake.add("user/small", good)
    assert content(hub_adapter.pull("user/small").path) == good


def test_a_pinned_adapter_in_the_cache_asks_nobody(fake: FakeHub, folder: Path) -> None:
    commit = fake.add("user/small", content(folder))
    found = hub_adapter.pull(f"user/small@{commit}")
    asked = len(fake.seen)
    assert hub_adapter.pull(f"user/small@{commit}") == found
    assert len(fake.seen) == asked


def test_a_place_that_is_taken_is_refused_before_anything_is_fetched(
    fake: FakeHub, folder: Path
) -> None:
    fake.add("user/small", content(folder))
    with pytest.raises(AdapterError, match="exists: choose another folder, or --overwrite"):
        hub_adapter.pull("user/small", folder)
    assert not fake.seen
    assert content(hub_adapter.pull("user/small", folder, overwrite=True).path) == content(folder)
