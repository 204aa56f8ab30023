"""`serve --models FILE`: what a file says, what is wrong with one, and a real server of two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from cmc_local.commands import main, serve_models
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.errors import CmcError
from cmc_local.server.served import Models
from cmc_local.settings import Limits
from serving import serving

TWO = """
memory = {memory}
[[model]]
name = "small"
gguf = "template"
adapters = ["instruct"]
context = 256
parallel = 1
[[model]]
name = "large"
gguf = "{folder}/larger.gguf"
adapters = ["{folder}/instruct:0.5", "forget"]
context = 256
parallel = 2
"""


def read(file: Path, folder: Path) -> Models:
    usual = ModelChoice(gguf=folder / "larger.gguf", limits=Limits(context=512, parallel=3))
    return serve_models.read(file, usual, queue=4, patience=9.0)


def test_a_file_names_models_with_their_adapters(tmp_path: Path, bundled_models: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(TWO.format(memory=500, folder=bundled_models), "utf-8")
    found = read(file, bundled_models)
    small, large = found.entries
    assert (found.megabytes, found.idle_seconds) == (500, float("inf"))
    assert (small.name, small.told) == ("small", {"instruct": 1.0})
    assert large.served_name == "large+instruct+forget"
    assert large.told["instruct"] == 0.5
    size = (bundled_models / "larger.gguf").stat().st_size / 2**20
    assert size < large.megabytes < size + 100
    assert small.megabytes < large.megabytes
    file.write_text('[[model]]\nname = "x"\ngguf = "larger.gguf"\n', "utf-8")
    (tmp_path / "larger.gguf").symlink_to(bundled_models / "larger.gguf")
    (alone,) = read(file, bundled_models).entries  # paths are from the file's own folder
    assert (alone.name, alone.told) == ("x", {})


@pytest.mark.parametrize(
    ("text", "told", "exit_code"),
    [
        ("", "names no model", 2),
        ("memory = ", "no TOML file", 2),
        ("model = 3", "model must be a list", 2),
        ("model = [3]", "model 1 must be a table", 2),
        ("models = []", "'models': known are memory, idle, model", 2),
        ("idle = 0\n[[model]]", "idle must be above 0", 2),
        ('memory = "1"', "memory must be a number", 2),
        ("memory = true", "memory must be a number", 2),
        ('[[model]]\nname = "a"', "model 1 has no gguf", 2),
        ('[[model]]\ngguf = "larger"', "model 1 has no name", 2),
        ('[[model]]\nname = "a+b"\ngguf = "larger"', "'a+b'", 2),
        ('[[model]]\nname = "base"\ngguf = "larger"', "'base'", 2),
        ('[[model]]\nname = "a"\ngguf = "larger"\nctx = 3', "'ctx'", 2),
        ('[[model]]\nname = "a"\ngguf = "larger"\nparallel = -1', "parallel must be above 0", 2),
        ('[[model]]\nname = "a"\ngguf = "larger"\nadapters = [3]', "must be texts", 2),
        ('[[model]]\nname = "a"\ngguf = "larger"\nadapters = ["none"]', "none", 1),
        ('[[model]]\nname = "a"\ngguf = "nowhere.gguf"', "nowhere.gguf", 1),
        ('[[model]]\nname = "a"\ngguf = "models.toml"', "models.toml", 1),
        ('memory = 1\n[[model]]\nname = "a"\ngguf = "larger"', "more than memory = 1", 2),
        ('[[model]]\nname = "a"\ngguf = "larger"\n' * 2, "two models have the name a", 2),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, bundled_models: Path, text: str, told: str, exit_code: int
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(CmcError) as caught:
        read(file, bundled_models)
    assert told in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == exit_code


def test_the_command_line_names_no_model_beside_a_file(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    result = CliRunner().invoke(main, ["serve", "--port", "0", "--models", str(file)])
    assert (result.exit_code, "cannot read" in result.output) == (1, True)
    more = ["--adapter", "instruct"]
    result = CliRunner().invoke(main, ["serve", "--port", "0", "--models", str(file), *more])
    assert (result.exit_code, "--models and --adapter" in result.output) == (2, True)


def test_two_real_models_take_turns_in_memory(tmp_path: Path, bundled_models: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(TWO.format(memory=500, folder=bundled_models), "utf-8")
    small, large = read(file, bundled_models).entries
    # Room for either of them alone.
    room = max(small.megabytes, large.megabytes) + 1
    file.write_text(TWO.format(memory=f"{room:.1f}", folder=bundled_models), "utf-8")

    def ask(name: str) -> dict[str, Any]:
        body = {"model": name, "temperature": 0, "max_tokens": 24}
        body["messages"] = [{"role": "user", "content": "Where does Flora Whitemark live?"}]
        for _ in range(200):
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                told: dict[str, Any] = answer.json()
                return told
            assert answer.json()["error"]["code"] in ("loading", "no_memory")
            assert int(answer.headers["Retry-After"]) > 0
            time.sleep(0.05)
        raise AssertionError("it is never loaded")

    def states() -> dict[str, str]:
        listed = client.get("/v1/models").json()["data"]
        return {one["id"]: one["state"] for one in listed if "+" not in one["id"]}

    with (
        serving("--models", str(file), "--threads", "1") as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert states() == {"small": "unloaded", "large": "unloaded"}
        steered = ask("small+instruct")["choices"][0]["message"]["content"]
        assert states() == {"small": "loaded", "large": "unloaded"}
        assert "Castlestead" in ask("large+instruct@1")["choices"][0]["message"]["content"]
        assert states() == {"small": "unloaded", "large": "loaded"}
        named = {one["id"]: one["model"] for one in client.get("/v1/adapters").json()["data"]}
        assert named == {"instruct": "large", "forget": "large"}
        assert ask("default")["choices"][0]["message"]["content"] == steered
        assert client.get("/health").json()["status"] == "ok"
        assert client.post("/v1/chat/completions", json={"model": "other", "messages": [
            {"role": "user", "content": "x"}]}).status_code == 404  # fmt: skip
