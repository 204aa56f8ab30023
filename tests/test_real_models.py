"""Where real models are found: a folder, a package that is not imported, or nowhere."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from cmc_local import bundled, real_models
from cmc_local.errors import InputError
from cmc_local.real_models import RealModel

FILE = "smollm2-135m-instruct-q4_1.gguf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for real models, empty, on a machine without the package."""
    place = tmp_path / "real"
    place.mkdir()
    monkeypatch.setenv("CMC_REAL", str(place))
    monkeypatch.setattr(real_models, "PACKAGE", "llm-none")
    return place


@pytest.fixture
def package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a GGUF file and must not be imported; the file."""
    inside = tmp_path / "site" / "llm_fake"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "SmolLM2.gguf").write_bytes(b"model")
    monkeypatch.syspath_prepend(str(inside.parent))
    monkeypatch.setattr(real_models, "PACKAGE", "llm-fake")
    return inside / "SmolLM2.gguf"


def test_nothing_is_here(folder: Path) -> None:
    assert [one.places() for one in real_models.MODELS] == [(), (), ()]
    with pytest.raises(InputError, match=r'smollm2.*pip install "cmc-local\[demo\]"'):
        real_models.find("smollm2")
    with pytest.raises(InputError, match=r"gemma3-270m.* is not in .*: see docs/how-to/real-mod"):
        real_models.find("gemma3")


def test_the_folder_comes_before_the_package(folder: Path, package: Path) -> None:
    assert real_models.find("smollm2") == package
    assert real_models.title(package) == "SmolLM2-135M-Instruct"
    (folder / FILE).touch()
    assert real_models.here("smollm2") == (folder / FILE, package)
    assert real_models.here("qwen25") == ()
    assert "llm_fake" not in sys.modules


def test_the_usual_folder_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMC_REAL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_models.folder() == tmp_path / ".cache" / "cmc-real-models"  # there or not
    monkeypatch.setenv("CMC_REAL", "~")
    assert real_models.folder() == tmp_path


@pytest.mark.parametrize("name", ["nowhere", "a-file"])
def test_a_folder_that_is_none_is_refused(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a-file").touch()
    monkeypatch.setenv("CMC_REAL", str(folder / name))
    with pytest.raises(InputError, match=f"CMC_REAL is .*{name}, which is no folder"):
        real_models.find("gemma3")
    assert real_models.title(Path("mine.gguf")) == "mine.gguf"  # needs no folder


def test_a_file_is_known_by_its_hash(tmp_path: Path) -> None:
    sha = hashlib.sha256(b"model").hexdigest()
    model = RealModel("tiny", "tiny.gguf", "Tiny", 5, sha, "none")
    file = tmp_path / "tiny.gguf"
    for content, same in ((b"model", True), (b"medal", False), (b"models", False)):
        file.write_bytes(content)
        assert model.is_in(file) is same


def test_one_talks_to_a_real_model_where_there_is_one_and_an_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_brief = {"brief": True}
    monkeypatch.setattr(bundled, "has", lambda name: with_brief[name])
    assert real_models.usual() == ("larger", "instruct")
    (folder / FILE).touch()
    assert real_models.usual() == ("smollm2", "brief")
    with_brief["brief"] = False
    assert real_models.usual() == ("larger", "instruct")
