"""Tab in a shell: a real bash, and what the program answers it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete

from cmc_local import bundled, real_models
from cmc_local.commands import COMMANDS, completing, main

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [name for name, _ in COMMANDS]
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def completed(cli: click.Command, *words: str) -> list[CompletionItem[str]]:
    """What click gives a shell for the last word."""
    return ShellComplete(cli, {}, "cmc-local", "_X").get_completions([*words[:-1]], words[-1])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which `cmc-local` is this checkout's."""
    program = tmp_path / "bin" / "cmc-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cmc_local "$@"\n')
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }


@bash
def test_one_line_teaches_bash(environment: dict[str, str]) -> None:
    script = """
    eval "$(_CMC_LOCAL_COMPLETE=bash_source cmc-local)"
    asked() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
              _cmc_local_completion cmc-local; echo "${COMPREPLY[@]}"; }
    asked cmc-local ""
    asked cmc-local tune
    asked cmc-local --ver
    asked cmc-local --debug chat --temp
    asked cmc-local chat --unmapped ""
    complete -p cmc-local
    """
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    *answers, registered = done.stdout.splitlines()
    assert answers == [" ".join(NAMES), "tune-alpha", "--version", "--temperature", "neutral zero"]
    assert registered == "complete -o nosort -F _cmc_local_completion cmc-local"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completing_a_command_imports_none(environment: dict[str, str], shell: str) -> None:
    program = (
        "import sys\nfrom cmc_local.commands import main\ntry: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*{m.split('.')[0] for m in sys.modules}, *sys.modules, file=sys.stderr)"
    )
    asked = {"COMP_WORDS": "cmc-local tu", "COMP_CWORD": "tu" if shell == "fish" else "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **asked, "_CMC_LOCAL_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tune-alpha" in done.stdout
    assert not {"numpy", "rich", "cmc_local.commands.chat"} & set(done.stderr.split())


def test_a_command_comes_with_its_help() -> None:
    found = completed(main, "tu")
    assert [(item.value, item.help) for item in found] == [
        ("tune-alpha", dict(COMMANDS)["tune-alpha"])
    ]


@click.command()
@click.option("--gguf", shell_complete=completing.gguf)
@click.option("--adapter", shell_complete=completing.adapter)
def sample(gguf: str, adapter: str) -> None:
    """Stands for the commands that take the two options."""


def values(option: str, begun: str) -> list[str]:
    return [item.value for item in completed(sample, option, begun)]


def test_known_names_come_before_what_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lama.gguf", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "large").mkdir()
    known = [*bundled.BASES, *real_models.NAMES]
    assert values("--gguf", "") == [*known, "large/", "lama.gguf"]
    assert values("--gguf", "l") == ["larger", "large/", "lama.gguf"]
    assert values("--adapter", "") == [*bundled.ADAPTERS, "large/"]
    assert values("--adapter", "in") == ["instruct"]


@pytest.mark.parametrize(("option", "kind"), [("--gguf", "file"), ("--adapter", "dir")])
def test_the_shell_looks_for_files_where_no_name_begins_so(option: str, kind: str) -> None:
    assert [(item.value, item.type) for item in completed(sample, option, "./mo")] == [
        ("./mo", kind)
    ]


def offered(group: click.Group, *words: str) -> Iterator[tuple[str, set[str]]]:
    """Each parameter of each command that is named after a place, and the kinds it completes."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from offered(command, *words, name)
        for one in command.params:
            named = {one.name, *re.split(r"\W", one.metavar or "")}
            if named & {"FILE", "PATH", "PLACE", "FOLDER", "PLAIN", "EXPERT", "path", "folder"}:
                kinds = {item.type for item in one.shell_complete(click.Context(command), "zz")}
                yield " ".join((*words, name, one.opts[0])), kinds


def test_where_a_file_may_stand_the_shell_is_told_to_look_for_one() -> None:
    found = dict(offered(main))
    assert len(found) > 60
    assert [place for place, kinds in found.items() if not kinds & {"file", "dir"}] == []


def test_inspect_takes_models_adapters_and_files() -> None:
    names = [item.value for item in completed(main, "inspect", "")]
    assert {*bundled.BASES, *bundled.ADAPTERS} <= {*names}
    assert [item.type for item in completed(main, "inspect", "zz")] == ["file"]
