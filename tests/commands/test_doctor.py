"""`cmc-local doctor`: what it finds, what it says to type, how it ends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmc_local import real_models
from cmc_local.base import library as base_library
from cmc_local.commands import doctor, main
from cmc_local.real_models import RealModel


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words])


def findings(done: Result) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_every_part_is_looked_at_and_a_model_really_decodes(tiny_gguf: Path) -> None:
    found = findings(run("--gguf", str(tiny_gguf), "--json"))
    assert list(found) == [
        *("versions", "llama.cpp", "base model", "GPU", "adapter", "training"),
        *("bundled models", "real models", *(one.title for one in real_models.MODELS)),
    ]
    assert "tiny-F32.gguf decodes" in found["base model"]["told"]
    assert "llama-cpp-python" in found["versions"]["told"]


def test_a_failure_ends_with_1_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("no model")
    done = run("--gguf", str(tmp_path / "bad.gguf"))
    assert done.exit_code == 1
    assert "FAIL  base model: " in done.stdout
    assert "is no GGUF file" in done.stdout
    assert "training: " in done.stdout


def test_a_missing_library_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> doctor.Finding:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_library", missing)
    found = {finding.name: finding for finding in doctor.examine("nowhere.gguf", "nowhere")}
    assert found["llama.cpp"].status == "fail"
    assert "libgomp" in found["llama.cpp"].told
    assert found["llama.cpp"].type_this == "make setup"


def test_a_build_with_amx_is_noted_with_the_way_to_rebuild(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base_library, "system_info", lambda: "CPU : AMX_INT8 = 1 |")
    found = doctor._library()
    assert (found.status, found.type_this) == ("note", base_library.REBUILD)


def test_the_exit_code_is_0_where_nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [doctor.Finding("one", "ok", "works"), doctor.Finding("two", "note", "slow", "do this")]
    monkeypatch.setattr(doctor, "examine", lambda gguf, adapter: iter(fine))
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "ok    one: works\nnote  two: slow\n      type: do this\n"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of real models with one known file in it, ten bytes, and no package."""
    content = b"a model..."
    hashed = hashlib.sha256(content).hexdigest()
    model = RealModel("tiny", "tiny.gguf", "Tiny", len(content), hashed, "none")
    monkeypatch.setattr(real_models, "MODELS", (model,))
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    (tmp_path / "tiny.gguf").write_bytes(content)
    return tmp_path / "tiny.gguf"


def real(*names: str) -> list[doctor.Finding]:
    return [one for one in doctor.examine("nowhere.gguf", "nowhere") if one.name in names]


def test_a_real_model_is_found_and_is_the_one_that_was_measured(known: Path) -> None:
    place, model = real("real models", "Tiny")
    assert (place.status, model.status) == ("ok", "ok")
    assert str(known.parent) in place.told and str(known) in model.told


@pytest.mark.parametrize("content", [b"a model!!!", b"short"])
def test_another_file_of_its_name_fails(known: Path, content: bytes) -> None:
    known.write_bytes(content)
    (model,) = real("Tiny")
    assert model.status == "fail"
    assert f"{known} is another file" in model.told and "real-models.md" in model.told


def test_one_that_is_not_there_is_a_note(known: Path) -> None:
    known.unlink()
    (model,) = real("Tiny")
    assert (model.status, "not there" in model.told) == ("note", True)


def test_a_wrong_folder_is_said_once(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMC_REAL", str(known))
    (place,) = real("real models", "Tiny")
    assert place.status == "fail" and "CMC_REAL" in place.told


def test_the_bundled_models_pass(bundled_models: Path) -> None:
    done = run("--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
