"""`cmc-local inspect` on a model, a vocabulary and an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fake_hub
from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.commands import main
from cmc_local.delta import adapter
from cmc_local.delta.adapter import AdapterSettings, DeltaShape
from cmc_local.text.prompts import named_form
from cmc_local.text.vocabulary import from_tokenizer_json
from fakes import tokenizer_json


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *words])


def asked(path: Path) -> dict[str, Any]:
    done = run(str(path), "--json")
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_model_says_its_sizes_types_and_vocabulary(tiny_gguf: Path) -> None:
    found = asked(tiny_gguf)
    assert (found["kind"], found["architecture"], found["context"]) == ("GGUF model", "llama", 128)
    assert found["tensor_types"] == {"F32": 20}
    assert found["bytes"] == tiny_gguf.stat().st_size
    assert found["chat_template"] is False
    assert found["vocabulary"] == {
        "size": 480,
        "kind": "SentencePiece BPE",
        "begins_with": "<s>",
        "ends_with": ["</s>"],
        "fingerprint": read_vocabulary(tiny_gguf).fingerprint,
    }


def test_people_get_lines(tiny_gguf: Path) -> None:
    lines = run(str(tiny_gguf)).stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["kind", "GGUF model"]
    assert any(line.split() == ["vocabulary", "size", "480"] for line in lines)
    assert any(line.split() == ["chat", "template", "no"] for line in lines)


def test_a_vocabulary_alone_is_called_that(shared_data: Path) -> None:
    found = asked(shared_data / "vocab" / "ggml-vocab-llama-spm.gguf")
    assert found["kind"] == "GGUF vocabulary, no weights"
    assert found["parameters"] == 0


def test_an_adapter_says_what_it_was_made_of(tmp_path: Path) -> None:
    shape = DeltaShape(
        vocabulary=5, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, mlp=16, context=64
    )
    settings = AdapterSettings(name="mine", shape=shape, prompt=named_form("cmc"), alpha=0.8)
    files: dict[str, bytes | Path] = {"delta.onnx": b"graph", "tokenizer.json": tokenizer_json()}
    adapter.write(tmp_path / "mine", settings, files)
    found = asked(tmp_path / "mine")
    assert (found["kind"], found["name"], found["alpha"]) == ("adapter", "mine", 0.8)
    assert found["precisions"] == {"fp32": 5}
    assert found["shape"]["context"] == 64
    expected = from_tokenizer_json(tokenizer_json()).fingerprint
    assert found["vocabulary"] == {"fingerprint": expected}


@pytest.mark.parametrize(
    ("name", "told"),
    [("nowhere.gguf", "no GGUF file at nowhere.gguf"), ("", "the path is empty")],
)
def test_what_is_not_there_is_one_line(name: str, told: str) -> None:
    done = run(name)
    assert done.exit_code in (1, 2)
    assert told in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_hub_may_hold_an_adapter_or_a_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_gguf: Path, bundled_models: Path
) -> None:
    folder = bundled_models / "instruct"
    with fake_hub.running(monkeypatch, tmp_path) as hub:
        hub.add("me/adapter", {path.name: path.read_bytes() for path in folder.iterdir()})
        hub.add("me/model", {"model-Q4_K_M.gguf": tiny_gguf.read_bytes()})
        kinds = [
            json.loads(run(name, "--json").stdout)["kind"]
            for name in ("hf:me/adapter", "hf:me/model")
        ]
    assert kinds == ["adapter", "GGUF model"]
