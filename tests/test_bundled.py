"""The bundled models are found in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local import bundled
from cmc_local.errors import InputError


def lay_out(models: Path) -> None:
    """Empty files with the names that models/ has."""
    for name in bundled.BASES:
        models.mkdir(parents=True, exist_ok=True)
        (models / f"{name}.gguf").touch()
    for folder in (*bundled.ADAPTERS, "template", "world"):
        (models / folder).mkdir()


@pytest.fixture(params=["models", "cmc_local/models"], ids=["checkout", "wheel"])
def models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in a temporary folder, with the models beside or inside the package."""
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "cmc_local" / "bundled.py"))
    place: Path = tmp_path / request.param
    lay_out(place)
    return place


def test_every_bundled_model_is_found(models: Path) -> None:
    assert bundled.folder() == models
    assert [bundled.base(n).name for n in bundled.BASES] == [
        "template.gguf",
        "larger.gguf",
        "other.gguf",
    ]
    assert bundled.adapter("forget") == models / "forget"


def test_defaults_are_bundled() -> None:
    assert bundled.DEFAULT_BASE in bundled.BASES
    assert bundled.DEFAULT_ADAPTER in bundled.WORLD_ADAPTERS


def test_an_adapter_may_be_left_out(models: Path) -> None:
    assert bundled.has("brief") and not bundled.has("broad")
    (models / "brief").rmdir()
    assert not bundled.has("brief")


def test_unknown_name_lists_the_known_ones(models: Path) -> None:
    with pytest.raises(
        InputError, match="no bundled model 'huge': there are template, larger, oth"
    ):
        bundled.base("huge")


def test_missing_file_names_the_remedy(models: Path) -> None:
    (models / "other.gguf").unlink()
    with pytest.raises(InputError, match=r"other\.gguf is missing: make it with `make models`"):
        bundled.base("other")
    with pytest.raises(InputError, match=r"test\.jsonl is missing"):
        bundled.world("test.jsonl")


def test_installation_without_models_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "cmc_local" / "bundled.py"))
    with pytest.raises(InputError, match="make them with `make models`, or name your own"):
        bundled.folder()
