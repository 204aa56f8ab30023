"""What one talks to where no model is named, what the first screen says, and `demo --real`.

The small world's models stand in for SmolLM2 and `brief`, in folders of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cmc_local.server.running
from cmc_local import bundled, real_models
from cmc_local.commands import demo_real, loading, main
from cmc_local.commands.model_choice import Devices, ModelChoice
from cmc_local.errors import InputError
from cmc_local.settings import Sampling

TESTS = Path(__file__).resolve().parents[1]
SMOLLM2 = "smollm2-135m-instruct-q4_1.gguf"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, bundled_models: Path) -> Path:
    """Bundled models: `larger`, `instruct`, and as `brief` the same adapter under that name."""
    folder = tmp_path_factory.mktemp("bundled") / "models"
    for name in ("instruct", "brief"):
        shutil.copytree(bundled_models / "instruct", folder / name)
    shutil.copy(bundled_models / "larger.gguf", folder)
    settings = folder / "brief" / "adapter.json"
    settings.write_text(settings.read_text().replace('"name": "instruct"', '"name": "brief"'))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, bundled_models: Path) -> Path:
    """A folder that holds "SmolLM2", which is `other`; the two real ones beside it are absent."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copy(bundled_models / "other.gguf", folder / SMOLLM2)
    return folder


@pytest.fixture
def here(models: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds those two folders and no package."""
    monkeypatch.setattr(bundled, "folder", lambda: models)
    monkeypatch.setenv("CMC_REAL", str(real))
    monkeypatch.setattr(real_models, "PACKAGE", "llm-none")
    monkeypatch.setattr(demo_real, "GREEDY", Sampling(temperature=0, max_tokens=12))
    one_thread = partial(ModelChoice, devices=Devices(threads=1))
    monkeypatch.setattr(demo_real, "ModelChoice", one_thread)


def run(*words: str, stdin: str = "a\n") -> Result:
    return CliRunner().invoke(main, [*words], input=stdin)


# --- what is loaded ---------------------------------------------------------------------------


@dataclass
class Loaded:
    """What a command asked for."""

    gguf: str
    adapters: list[tuple[str, float | None]]


@pytest.fixture
def loaded(here: None, monkeypatch: pytest.MonkeyPatch) -> list[Loaded]:
    """Filled in place of loading anything."""
    found: list[Loaded] = []

    def steered(chosen: ModelChoice) -> None:
        acting = [(one.path.name, one.alpha) for one in chosen.acting]
        found.append(Loaded(chosen.gguf.name, acting))
        raise InputError("loaded")

    def serve(service: Any, *_: Any, **__: Any) -> None:
        service.models.entries[0].load()

    monkeypatch.setattr(loading, "steered", steered)
    monkeypatch.setattr(cmc_local.server.running, "serve", serve)
    return found


@pytest.mark.parametrize(
    "command", [("chat",), ("generate", "a"), ("serve", "--port", "0")], ids=lambda words: words[0]
)
@pytest.mark.parametrize(
    ("words", "gguf", "adapters"),
    [
        ((), SMOLLM2, [("brief", None)]),
        (("--adapter", "brief:0.5"), SMOLLM2, [("brief", 0.5)]),
        (("--gguf", "smollm2"), SMOLLM2, [("brief", None)]),
        (("--gguf", "larger"), "larger.gguf", [("instruct", None)]),
        (("--adapter", "instruct"), "larger.gguf", [("instruct", None)]),
        (("--gguf", "smollm2", "--adapter", "instruct:0"), SMOLLM2, [("instruct", 0.0)]),
        (("--gguf", "{real}"), SMOLLM2, []),  # by its path it is a model like any other
        (("--lora", "{real}"), SMOLLM2, []),  # a rival stands alone
    ],
)
def test_the_commands_that_talk_begin_alike(
    loaded: list[Loaded],
    real: Path,
    command: tuple[str, ...],
    words: tuple[str, ...],
    gguf: str,
    adapters: list[tuple[str, float | None]],
) -> None:
    done = run(*command, *(word.format(real=real / SMOLLM2) for word in words))
    assert "loaded" in done.stderr
    assert loaded == [Loaded(gguf, adapters)]


def test_a_file_of_a_models_name_is_a_file(
    loaded: list[Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2").touch()
    run("chat", "--gguf", "smollm2")
    assert loaded == [Loaded("smollm2", [])]


@pytest.mark.parametrize("absent", ["model", "adapter"])
def test_without_either_the_small_world_is_as_it_was(
    loaded: list[Loaded], models: Path, tmp_path: Path, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if absent == "model":
        monkeypatch.setenv("CMC_REAL", str(tmp_path))
    else:
        bare = tmp_path / "models"
        shutil.copytree(models, bare)
        shutil.rmtree(bare / "brief")
        monkeypatch.setattr(bundled, "folder", lambda: bare)
    for command in (("chat",), ("generate", "a"), ("--offline", "chat")):
        run(*command)
    assert loaded == [Loaded("larger.gguf", [("instruct", None)])] * 3


@pytest.mark.parametrize(
    ("words", "temperature"),
    [
        ((), 0.0),
        (("--gguf", "larger"), 0.0),
        (("--gguf", "{real}"), 0.8),
        (("--temperature", "0.3"), 0.3),
    ],
)
def test_small_models_answer_greedily(
    here: None, real: Path, words: tuple[str, ...], temperature: float
) -> None:
    import click

    from cmc_local.commands.usual_model import talking

    seen: list[float] = []

    @click.command()
    @talking
    def command(*, sampling: Any, **_: Any) -> None:
        seen.append(sampling.temperature)

    command.main([word.format(real=real / SMOLLM2) for word in words], standalone_mode=False)
    assert seen == [temperature]


# --- bad input --------------------------------------------------------------------------------


def test_a_folder_that_is_none_ends_in_one_line(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMC_REAL", str(tmp_path / "nowhere"))
    for words in (("chat",), ("generate", "a"), ("demo", "--real")):
        done = run(*words)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        assert f"CMC_REAL is {tmp_path / 'nowhere'}, which is no folder" in done.stderr
    done = run("generate", "--gguf", "larger", "-n", "2", "--context", "128", "a")
    assert done.exit_code == 0, done.stderr  # and nobody looks there


def test_a_file_that_is_no_model_ends_in_one_line(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SMOLLM2).write_text("another file")
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    done = run("chat")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert f"{SMOLLM2} is no GGUF file" in done.stderr


# --- the screen -------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from functools import partial
from cmc_local import bundled, real_models
from cmc_local.commands import demo_real, main
from cmc_local.commands.model_choice import Devices, ModelChoice
from cmc_local.settings import Sampling

demo_real.GREEDY = Sampling(temperature=0, max_tokens=12)
demo_real.ModelChoice = partial(ModelChoice, devices=Devices(threads=1))
folder = Path(sys.argv[1])
bundled.folder = lambda: folder
real_models.PACKAGE = "llm-none"
main(sys.argv[2:])
"""


@pytest.fixture
def terminal(models: Path, real: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs `cmc-local` in a terminal of 120 columns, with what is bundled and what is real."""
    pexpect = pytest.importorskip("pexpect")
    children = []

    def spawn(*words: str, real: Path = real, columns: int = 120):  # type: ignore[no-untyped-def]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "XDG_STATE_HOME": str(tmp_path),
            "NO_COLOR": "1",
            "CMC_REAL": str(real),
        }
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        child = pexpect.spawn(
            sys.executable,
            ["-c", PROGRAM, str(models), *words],
            env=environment,
            encoding="utf-8",
            timeout=120,
            dimensions=(40, columns),
        )
        child.eof = pexpect.EOF
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def test_the_chat_says_what_it_is_and_compares(terminal) -> None:  # type: ignore[no-untyped-def]
    chat = terminal("chat", "--context", "128", "-n", "4", "--threads", "1")
    chat.expect_exact(
        "SmolLM2-135M-Instruct steered by brief 1\r\n/compare QUESTION answers without"
    )
    chat.expect_exact("a small made-up world instead: cmc-local chat --gguf larger")
    chat.expect_exact("\x1b[?25h")
    chat.send("/compare a\r")
    chat.expect(r"plain +│ brief 1")
    chat.expect(r"\d+ tokens, .* │ \d+ tokens")
    chat.send("\x04")
    chat.expect(chat.eof)


def test_without_a_real_model_the_chat_says_how_to_get_one(terminal, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    chat = terminal("chat", "--context", "128", real=tmp_path)
    chat.expect_exact("larger.gguf steered by instruct 1\r\n/compare QUESTION answers without")
    chat.expect_exact('a real model instead: pip install "cmc-local[demo]"')


def test_a_model_that_was_named_needs_no_more_words(terminal) -> None:  # type: ignore[no-untyped-def]
    chat = terminal("chat", "--gguf", "larger", "--adapter", "instruct:0", "--context", "128")
    chat.expect_exact("larger.gguf, plain; /? for help, Ctrl-D leaves\r\n")
    assert "instead" not in chat.before


@pytest.mark.parametrize("columns", [100, 99])
def test_the_demo_in_a_terminal(terminal, columns: int) -> None:  # type: ignore[no-untyped-def]
    demo = terminal("demo", "--real", columns=columns)
    demo.expect_exact("SmolLM2-135M-Instruct")
    demo.expect_exact(demo_real.QUESTIONS[0])
    if columns >= demo_real.WIDE:
        demo.expect(r"plain +│ brief 1")
        demo.expect(r"\d+ tokens, [\d.]+ s(, cut off)? +│ \d+ tokens, [\d.]+ s")
    else:
        demo.expect_exact("[plain]")
        demo.expect(r"\d+ tokens, [\d.]+ s")
        demo.expect_exact("[brief 1]")
    demo.expect_exact("Not here: Gemma 3 270M and Qwen2.5-Coder-0.5B-Instruct")
    demo.expect(demo.eof)


def test_the_demo_asks_every_question_plain_and_steered(here: None) -> None:
    done = run("demo", "--real")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line[2:] for line in lines if line.startswith("> ")] == list(demo_real.QUESTIONS)
    assert lines.count("  [plain]") == lines.count("  [brief 1]") == len(demo_real.QUESTIONS)
    told = "Not here: Gemma 3 270M and Qwen2.5-Coder-0.5B-Instruct. docs/how-to/real-models.md says"
    assert told in " ".join(done.stdout.split())
    assert max(map(len, lines)) <= 80
    plain, steered = done.stdout.split("  [plain]\n")[1].split("  [brief 1]\n")
    assert plain.splitlines()[0] != steered.splitlines()[0]


def test_the_demo_without_models_or_adapter_says_what_to_do(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    done = run("demo", "--real")
    assert done.exit_code == 1
    assert 'pip install "cmc-local[demo]"' in done.stderr
    monkeypatch.setattr(bundled, "folder", lambda: tmp_path)
    done = run("demo", "--real")
    assert (done.exit_code, "brief is missing" in done.stderr) == (1, True)
