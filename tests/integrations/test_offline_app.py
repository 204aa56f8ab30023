"""The example app where there is no network at all: a network namespace without interfaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmc_local import Sampling, SteeredModel
from cmc_local.text.prompts import Message

APP = Path(__file__).resolve().parents[2] / "examples" / "offline_app.py"
QUESTIONS = ("In which town was Anna Westgate born?", "Who is her father?")
ALONE = ("unshare", "--map-root-user", "--net")


@pytest.fixture(scope="module")
def alone() -> None:
    """Skips the test where this user may not make a namespace."""
    if shutil.which("unshare") is None:
        pytest.skip("no command `unshare`: the offline app is tested on Linux")
    tried = subprocess.run([*ALONE, "cat", "/proc/net/dev"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no network namespace for this user: {tried.stderr.strip()}")
    names = [line.split(":")[0].strip() for line in tried.stdout.splitlines()[2:]]
    assert names == ["lo"]  # and even that one is down


@pytest.fixture(scope="module")
def folder(bundled_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the app ships with."""
    made = tmp_path_factory.mktemp("app")
    shutil.copy(bundled_models / "larger.gguf", made / "model.gguf")
    shutil.copytree(bundled_models / "instruct", made / "adapter")
    return made


def run(typed: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ALONE, sys.executable, str(APP), *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_chats_without_a_network(alone: None, folder: Path) -> None:
    done = run("\n".join(["", *QUESTIONS, ""]), folder)
    assert (done.returncode, done.stderr) == (0, "")
    messages: list[Message] = []
    with SteeredModel.load(folder / "model.gguf", [folder / "adapter"]) as model:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            said = model.chat(messages, Sampling(temperature=0, max_tokens=200)).text
            messages.append({"role": "assistant", "content": said})
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert done.stdout == "".join(["> ", *(f"> {said}\n" for said in answers), "> "])


def test_a_folder_without_a_model_is_one_line(alone: None, tmp_path: Path) -> None:
    done = run("", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "model.gguf") in done.stderr


def test_it_says_how_to_call_it(alone: None) -> None:
    done = run("")
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python offline_app.py FOLDER")
