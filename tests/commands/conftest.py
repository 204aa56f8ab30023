"""What the tests of `cmc-local eval` run on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cmc_local.commands import loading, main
from eval_runs import Loader, Run


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    fake = Loader()
    monkeypatch.setattr(loading, "steered", fake)
    return fake


@pytest.fixture
def run(loader: Loader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(b"weights")
    Path("delta").mkdir()
    Path("delta/adapter.json").write_text("{}")
    talks = [{"question": "a", "answer": "b"}, {"question": "ab", "answer": "bb"}]
    Path("held-out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talks))

    def invoke(task: str, *words: str) -> Result:
        return CliRunner().invoke(main, ["eval", task, *words])

    return invoke
