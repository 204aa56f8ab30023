"""The adapter folder: written whole or not at all, read only when every file is as recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmc_local.delta import adapter
from cmc_local.delta.adapter import AdapterSettings, DeltaShape, TemplateName
from cmc_local.errors import AdapterError
from cmc_local.text.prompts import PromptForm

SHAPE = DeltaShape(
    vocabulary=5, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8, context=16
)
SETTINGS = AdapterSettings(
    name="small",
    shape=SHAPE,
    prompt=PromptForm("cmc", "<|user|>\n{query}\n<|assistant|>\n"),
    turns="last",
    alpha=0.5,
    normalization="add",
    template=TemplateName("tiny", "ab" * 32),
    training={"steps": 3},
    license="apache-2.0",
)
FILES: dict[str, bytes | Path] = {
    "delta.onnx": b"graph",
    "delta.int8.onnx": b"smaller",
    "tokenizer.json": b"{}",
    "README.md": b"# small\n",
}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adapter.write(tmp_path / "a", SETTINGS, FILES).path


def change(folder: Path, how: Change) -> None:
    """Edit adapter.json in place."""
    path = folder / "adapter.json"
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))


def refused(folder: Path) -> str:
    """The one line that `load` ends with."""
    with pytest.raises(AdapterError) as caught:
        adapter.load(folder)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)  # what is wrong, then what to do
    return str(caught.value)


def test_what_was_written_is_read(folder: Path) -> None:
    found = adapter.load(folder)
    record = found.settings.files["delta.onnx"]
    assert record == adapter.FileRecord(hashlib.sha256(b"graph").hexdigest(), 5)
    assert found.settings.files.keys() == FILES.keys()
    assert found.settings.prompt == SETTINGS.prompt
    assert found.settings.template == SETTINGS.template
    assert (found.settings.alpha, found.settings.turns) == (0.5, "last")
    assert found.precisions == ("fp32", "int8")
    assert found.graph("int8") == folder / "delta.int8.onnx"
    assert found.tokenizer_json == b"{}"


def test_files_may_be_copied_from_paths(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(b"graph")
    found = adapter.write(tmp_path / "a", SETTINGS, {**FILES, "delta.onnx": source})
    assert found.read("delta.onnx") == b"graph"


def test_a_missing_precision_names_those_there(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"no fp16 graph.*fp32, int8"):
        adapter.load(folder).graph("fp16")


def test_fp32_may_be_left_out(tmp_path: Path) -> None:
    small: dict[str, bytes | Path] = {**FILES, "delta.fp16.onnx": b"half"}
    del small["delta.onnx"]
    found = adapter.write(tmp_path / "a", SETTINGS, small)
    assert (found.precisions, found.most_exact) == (("int8", "fp16"), "fp16")
    with pytest.raises(AdapterError, match=r"no fp32 graph.*int8, fp16"):
        found.graph("fp32")


def test_a_hidden_file_is_ignored(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.onnx lfs")
    assert adapter.load(folder).settings.name == "small"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda f: (f / "delta.onnx").write_bytes(b"grapg"),
            "delta.onnx does not match",
        ),
        (lambda f: (f / "delta.onnx").write_bytes(b"gra"), "delta.onnx has 3 bytes, not 5"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "weights.bin").write_bytes(b"x"), "weights.bin is not listed"),
        (lambda f: (f / "README.md").rename(f.parent / "r"), "README.md is missing"),
        (
            lambda f: (
                (f / "delta.onnx").rename(f.parent / "g")
                and (f / "delta.onnx").symlink_to(f.parent / "g")
            ),
            "delta.onnx is a link",
        ),
    ],
)
def test_files_that_are_not_as_recorded_are_named(
    folder: Path, damage: Callable[[Path], object], expected: str
) -> None:
    damage(folder)
    assert expected in refused(folder)


def test_a_newer_format_is_refused_by_name(folder: Path) -> None:
    change(folder, lambda d: d.update(format=2, something_new=1))
    message = refused(folder)
    assert "of format 2, newer than this version reads (1)" in message
    assert "pip install --upgrade" in message


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "sub/delta.onnx", "..", "adapter.json", "run.py", "a\\b"]
)
def test_only_the_files_of_the_format_may_be_listed(folder: Path, name: str) -> None:
    change(folder, lambda d: d["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert "is no file of an adapter" in refused(folder)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (lambda d: d.pop("format"), "says no format version"),
        (lambda d: d.update(format=True), "says no format version"),
        (lambda d: d.pop("shape"), "'shape' is missing"),
        (lambda d: d["shape"].pop("mlp"), "mlp"),
        (lambda d: d["shape"].update(layers=0), "layers is 0"),
        (lambda d: d["shape"].update(layers="two"), "layers is 'two'"),
        (lambda d: d.update(prompt={"name": "x", "turn": "no query"}), "{query}"),
        (lambda d: d.update(turns="some"), "turns is 'some'"),
        (lambda d: d.update(normalization="none"), "normalization 'none'"),
        (lambda d: d.update(thinking=["<think>"]), "thinking is not two texts"),
        (lambda d: d.update(thinking=["<think>", " "]), "thinking is not two texts"),
        (lambda d: d.update(alpha="1"), "`alpha` has the wrong type"),
        (lambda d: d["files"].pop("tokenizer.json"), "must list tokenizer.json and a graph"),
        (lambda d: d.update(files={"tokenizer.json": "x"}), "mapping"),
    ],
)
def test_a_damaged_settings_file_is_named(folder: Path, how: Change, expected: str) -> None:
    change(folder, how)
    message = refused(folder)
    assert "adapter.json" in message
    assert expected in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\udcff"])
def test_a_settings_file_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "adapter.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "adapter.json is not" in refused(folder)


def test_other_places_are_no_adapter_folder(tmp_path: Path) -> None:
    assert "is not an adapter folder" in refused(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "is not an adapter folder" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "adapter.json is missing" in refused(tmp_path / "empty")


def test_a_file_changed_after_loading_is_not_used(folder: Path) -> None:
    found = adapter.load(folder)
    (folder / "delta.onnx").write_bytes(b"other")
    with pytest.raises(AdapterError, match="changed after it was checked"):
        found.read("delta.onnx")


def test_an_adapter_is_replaced_only_when_asked(folder: Path) -> None:
    with pytest.raises(AdapterError, match="exists: choose another folder"):
        adapter.write(folder, SETTINGS, FILES)
    again = adapter.write(folder, SETTINGS, {**FILES, "delta.onnx": b"new"}, overwrite=True)
    assert again.read("delta.onnx") == b"new"
    assert [p.name for p in folder.parent.iterdir()] == ["a"]  # nothing is left beside it


def test_a_folder_that_is_no_adapter_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(AdapterError, match="is not an adapter"):
        adapter.write(tmp_path / "mine", SETTINGS, FILES, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        adapter.write(tmp_path / "a", SETTINGS, {**FILES, "delta.onnx": tmp_path / "absent"})
    with pytest.raises(AdapterError, match="no file of an adapter"):
        adapter.write(tmp_path / "a", SETTINGS, {**FILES, "model.pkl": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_settings_are_written_in_a_fixed_shape() -> None:
    assert SETTINGS.to_json().splitlines()[:4] == [
        "{",
        '  "format": 1,',
        '  "name": "small",',
        '  "shape": {',
    ]
