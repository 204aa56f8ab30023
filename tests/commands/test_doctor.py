"""`cmc-local doctor`: what it finds, what it says to type, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmc_local import base_library
from cmc_local.commands import doctor, main


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words])


def findings(done: Result) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_every_part_is_looked_at_and_a_model_really_decodes(tiny_gguf: Path) -> None:
    found = findings(run("--gguf", str(tiny_gguf), "--json"))
    assert list(found) == ["versions", "llama.cpp", "base model", "GPU", "adapter", "training"]
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


def test_the_bundled_models_pass(bundled_models: Path) -> None:
    done = run("--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
