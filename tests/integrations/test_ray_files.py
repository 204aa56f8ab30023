"""Files of the same path on two machines: the same ones, others, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.errors import InputError
from cmc_local.integrations import ray_files


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Three megabytes of a GGUF, and an adapter."""
    gguf, adapter = tmp_path / "base.gguf", tmp_path / "adapter"
    gguf.write_bytes(b"GGUF" + bytes(3 * ray_files.END))
    adapter.mkdir()
    (adapter / "adapter.json").write_text("{}")
    return gguf, adapter


def test_the_same_files_are_loaded(files: tuple[Path, Path]) -> None:
    gguf, adapter = files
    known = ray_files.marks([gguf, gguf.with_name("absent.gguf")], [adapter])
    assert [one.path.name for one in known] == ["base.gguf", "adapter.json"]
    assert ray_files.same(known, lambda: "loaded") == "loaded"
    gguf.unlink()  # the model's own error is a better one
    assert ray_files.same(known, lambda: "loaded") == "loaded"


@pytest.mark.parametrize(
    ("name", "at", "text"),
    [
        ("base.gguf", 2, b"x"),
        ("base.gguf", 3 * ray_files.END, b"x"),  # in the last megabyte
        ("base.gguf", 3 * ray_files.END + 4, b"x"),  # one byte longer
        ("adapter/adapter.json", 1, b" }"),
    ],
)
def test_another_file_is_refused(files: tuple[Path, Path], name: str, at: int, text: bytes) -> None:
    gguf, adapter = files
    known = ray_files.marks([gguf], [adapter])
    with (gguf.parent / name).open("r+b") as file:
        file.seek(at)
        file.write(text)
    with pytest.raises(InputError, match=f"{name} is another file than where"):
        ray_files.same(known, lambda: "loaded")
