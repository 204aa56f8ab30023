"""`cmc-local export`: options in, the library called, errors as one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tiny_adapters
from cmc_local.commands import main
from cmc_local.delta import adapter


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_plain_folder_becomes_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_adapters.checkpoint(tmp_path / "delta", layers=1)
    target = tmp_path / "adapter"
    options = ["--prompt", "Q: {query} A:", "--alpha", "0.5", "--json"]
    options += ["--precision", "fp16", "--precision", "fp32"]
    code, out, err = run(capsys, checkpoint, "-o", target, *options)
    assert code == 0, err
    printed = json.loads(out)
    assert printed["adapter"] == str(target)
    assert printed["figures"]["fp32"]["error"] < 1e-4
    assert printed["figures"].keys() == {"fp32", "fp16"}
    assert "comparing with PyTorch" in err
    found = adapter.load(target).settings
    assert (found.prompt.turn, found.alpha) == ("Q: {query} A:", 0.5)


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ([], 1, "has no config.json"),
        (["--prompt", "nothing"], 2, "no prompt form 'nothing'"),
        (["--normalization", "some"], 2, "normalization 'some'"),
        (["--precision", "int4"], 2, "int4"),
        (["--alpha", "nan"], 2, "alpha must be a finite number"),
        (["--turns", "some"], 2, "'some' is not one of"),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    told: str,
) -> None:
    found, out, err = run(capsys, tmp_path, "-o", tmp_path / "adapter", *options)
    assert (found, out) == (code, "")
    assert told in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("cmc-local: error: ")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnx", "cmc_export"])
def test_without_the_extra_its_name_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "cmc_export"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    code, out, err = run(capsys, tmp_path, "-o", tmp_path / "adapter")
    assert (code, out) == (1, "")
    assert err.endswith('is not installed: pip install "cmc-local[train]"\n')
    assert len(err.splitlines()) == 1
