"""`cmc-local adapter`, and the options that name models of a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cmc_local import offline
from cmc_local.commands import main, options
from cmc_local.delta.adapter import Adapter
from cmc_local.errors import InputError, UsageError
from cmc_local.hub import adapters as hub_adapter
from cmc_local.hub import gguf as hub_gguf
from cmc_local.hub import places


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def made(decorator: Any, *words: str) -> Any:
    """What a decorator's options hand to their command."""
    received: list[dict[str, Any]] = []

    @click.command(context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("-n", type=int)
    @decorator
    def command(n: int | None, **values: Any) -> None:
        received.append(values)

    command.main(list(words), standalone_mode=False)
    return next(iter(received[0].values())) if received else None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the commands ask of the library, in place of it."""
    calls: list[tuple[Any, ...]] = []

    def push(folder: Path, repo: str, *, public: bool) -> str:
        calls.append(("push", folder, repo, public))
        return "URL"

    def pull(text: str, to: Path | None = None, *, overwrite: bool = False) -> Adapter:
        calls.append(("pull", text, to, overwrite))
        return Adapter(to or Path("/cache/there"), None)  # type: ignore[arg-type]

    def fetch(text: str) -> Path:
        calls.append(("fetch", text, offline.wanted()))
        return Path("/cache/model.gguf")

    monkeypatch.setattr(hub_adapter, "push", push)
    monkeypatch.setattr(hub_adapter, "pull", pull)
    monkeypatch.setattr(hub_gguf, "fetch", fetch)
    return calls


def test_push_prints_the_address(asked: list[tuple[Any, ...]]) -> None:
    assert run("adapter", "push", "mine", "user/repo").stdout == "URL\n"
    assert run("adapter", "push", "mine", "user/repo", "--public").exit_code == 0
    assert asked == [
        ("push", Path("mine"), "user/repo", False),
        ("push", Path("mine"), "user/repo", True),
    ]


def test_pull_prints_the_place(asked: list[tuple[Any, ...]]) -> None:
    assert run("adapter", "pull", "user/repo").stdout == "/cache/there\n"
    assert run("adapter", "pull", "user/repo@v2", "--to", "x", "--overwrite").stdout == "x\n"
    assert asked == [
        ("pull", "user/repo", None, False),
        ("pull", "user/repo@v2", Path("x"), True),
    ]


def test_list_shows_what_was_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [("user/repo@abc", Path("/cache/there"))]
    monkeypatch.setattr(hub_adapter, "in_cache", lambda: iter(there))
    assert run("adapter", "list").stdout == "user/repo@abc\t/cache/there\n"


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: object, **_options: object) -> None:
        raise InputError("user/repo is gated: accept its terms")

    monkeypatch.setattr(hub_adapter, "pull", refuse)
    done = run("adapter", "pull", "user/repo")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "cmc-local: error: user/repo is gated: accept its terms\n"


def test_the_base_may_come_from_a_hub(asked: list[tuple[Any, ...]]) -> None:
    path = Path("/cache/model.gguf")
    for words in (["-hf", "user/repo:Q8_0"], ["--hf-repo", "user/repo:Q8_0", "-n5"]):
        assert made(options.gguf, *words) == path
    assert made(options.gguf, "-m", "hf:user/repo") == path
    assert [text for _, text, _ in asked] == ["user/repo:Q8_0", "user/repo:Q8_0", "hf:user/repo"]
    with pytest.raises(UsageError, match="--gguf and -hf"):
        made(options.gguf, "-m", "template", "-hf", "user/repo")


def test_minus_h_is_still_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert made(options.gguf, "-h") is None
    assert "-hf, --hf-repo USER/REPO[:QUANT]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "repo", "alpha"),
    [
        ("hf:user/repo", "hf:user/repo", None),
        ("hf:user/repo:0.5", "hf:user/repo", 0.5),
        ("hf:user/repo@v2:-1", "hf:user/repo@v2", -1.0),
    ],
)
def test_an_adapter_may_come_from_a_hub(
    asked: list[tuple[Any, ...]], text: str, repo: str, alpha: float | None
) -> None:
    choice = places.AdapterChoice(Path("/cache/there"), alpha)
    assert made(options.adapters, "--adapter", text) == (choice,)
    assert asked == [("pull", repo, None, False)]


@pytest.mark.parametrize("words", [["--offline", "show"], ["show", "--offline"]])
def test_offline_holds_for_the_command_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    seen: list[bool] = []
    command = click.Command("show", callback=lambda: seen.append(offline.wanted()))
    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: command)
    assert run("show").exit_code == 0
    assert run(*words).exit_code == 0
    assert seen == [False, True]
    assert not offline.wanted()
