"""`cmc-local finetune`: arguments in, one library call, a GGUF and a summary out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cmc_local.base.gguf_header import read as read_header
from cmc_local.commands import main


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["finetune", *map(str, words)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    lines = [json.dumps({"question": f"Who is {i}?", "answer": f"It is {i}."}) for i in range(4)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_full_writes_a_whole_model_of_the_type_asked_for(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "whole.gguf"
    words = ["--model", tiny_folder, "--data", data, "--valid", data, "--type", "Q8_0"]
    done = run(*words, "--prompt", "cmc", "--steps", "1", "--device", "cpu", "-o", output, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "full"
    assert read_header(output).tensor_types == {"Q8_0": 15, "F32": 5}
    assert "held-out loss" in done.stderr


def test_lora_of_a_gguf_writes_an_adapter(tiny_gguf: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "lora.gguf"
    words = ["--model", tiny_gguf, "--data", data, "--method", "lora", "--rank", "3"]
    words += ["--lora-alpha", "6", "--target", "v_proj", "--steps", "1", "--device", "cpu"]
    done = run(*words, "-o", output)
    assert done.exit_code == 0, done.stderr
    assert "learning parameters" in done.stdout
    found = read_header(output)
    assert found.metadata["adapter.lora.alpha"] == 6.0
    first, second = found.tensors[:2]
    # v of two heads of 8, beside 32: A is (3, 32), B (16, 3); GGUF gives the row's length first.
    assert (first.name, first.shape) == ("blk.0.attn_v.weight.lora_a", (32, 3))
    assert (second.name, second.shape) == ("blk.0.attn_v.weight.lora_b", (3, 16))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--data", "d", "-o", "out.gguf"], 2, "add --model"),
        (["--model", "m.gguf", "-o", "out.gguf"], 2, "add --data"),
        (["--model", "none.gguf", "--data", "d", "-o", "out.gguf"], 1, "none.gguf"),
        (["--model", "m", "--data", "d", "--target", "lm_head", "-o", "o"], 2, "does not convert"),
        (["--method", "half"], 2, "half"),
    ],
)
def test_mistakes_are_one_line_on_stderr(words: list[str], code: int, told: str) -> None:
    done = run(*words)
    assert done.exit_code == code
    assert done.stdout == ""
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_peft_one_line_says_how_to_get_it(
    tiny_gguf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    words = ["--model", tiny_gguf, "--data", data, "--method", "lora"]
    done = run(*words, "-o", tmp_path / "lora.gguf")
    assert done.exit_code == 1
    assert 'pip install "cmc-local[train]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_speaks_of_a_file() -> None:
    assert "GGUF file to write" in run("--help").stdout
