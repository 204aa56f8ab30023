"""The edge of the command line: what is loaded, what an error becomes, how it ends."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cmc_local import __version__, commands
from cmc_local.commands import COMMANDS, generate, main, options
from cmc_local.errors import AdapterError, CmcError, PromptTooLong, UsageError
from cmc_local.hub import places
from cmc_local.settings import Control, Limits, Sampling


def run(*words: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, words)


def command_that(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Put a command in the place of `chat`."""
    fake = click.Command("chat", callback=action)
    monkeypatch.setattr(commands.Commands, "get_command", lambda self, ctx, name: fake)


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def test_help_lists_every_command_in_one_line_each() -> None:
    shown = run("--help").stdout
    for name, told in COMMANDS:
        assert any(line.split(maxsplit=1) == [name, told] for line in shown.splitlines())


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_command_has_its_module_and_its_help(name: str) -> None:
    assert find_spec(f"cmc_local.commands.{name.replace('-', '_')}") is not None
    done = run(name, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: cmc-local {name}")


def test_version() -> None:
    assert run("--version").stdout == f"cmc-local {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CmcError("it broke: mend it"), 1),
        (AdapterError("it broke: mend it"), 1),
        (UsageError("it broke: mend it"), 2),
        (PromptTooLong("it broke:\n   mend it"), 2),
        (click.ClickException("it broke: mend it"), 1),
    ],
)
def test_an_error_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    command_that(monkeypatch, raising(error))
    done = run("chat")
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr == "cmc-local: error: it broke: mend it\n"


def test_a_file_that_cannot_be_opened_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command_that(monkeypatch, tmp_path.read_text)
    assert run("chat").stderr == f"cmc-local: error: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nonsense"], "No such option '--nonsense' (see `cmc-local --help`)"),
        (["nonsense"], "No such command 'nonsense' (see `cmc-local --help`)"),
        (["chat", "--nonsense"], "No such option '--nonsense' (see `cmc-local chat --help`)"),
    ],
)
def test_wrong_use_is_one_line_with_the_place_to_look(
    monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    if words[0] == "chat":
        command_that(monkeypatch, lambda: None)
    done = run(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"cmc-local: error: {told}\n"


def test_no_command_shows_the_help_on_stderr() -> None:
    done = run()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: cmc-local")


def test_an_unexpected_error_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command_that(monkeypatch, raising(ZeroDivisionError("division by zero")))
    done = run("chat")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "cmc-local: error: internal error: ZeroDivisionError: division by zero; "
        "run again with --debug to see where\n"
    )


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--debug", "chat"], {}),
        (["chat", "--debug"], {}),
        (["chat"], {"CMC_DEBUG": "1"}),
    ],
)
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str]
) -> None:
    command_that(monkeypatch, raising(AdapterError("it broke")))
    done = run(*words, **environment)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("cmc-local: error: it broke\n")


def test_debug_after_a_bare_double_dash_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fake = click.Command(
        "generate", params=[click.Argument(["prompt"])], callback=lambda prompt: seen.append(prompt)
    )
    monkeypatch.setattr(commands.Commands, "get_command", lambda self, ctx, name: fake)
    assert run("generate", "--", "--debug").exit_code == 0
    assert seen == ["--debug"]


def test_interrupt_ends_with_130_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, raising(KeyboardInterrupt()))
    done = run("chat")
    assert done.exit_code == 130
    assert done.output.strip() == ""


def test_a_commands_number_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, lambda: 3)
    assert run("chat").exit_code == 3


def test_no_color_takes_the_colour_out(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, lambda: click.echo(click.style("red", fg="red")))
    coloured = CliRunner().invoke(main, ["chat"], color=True, env={"NO_COLOR": ""})
    plain = CliRunner().invoke(main, ["chat"], color=True, env={"NO_COLOR": "1"})
    assert (coloured.stdout, plain.stdout) == ("\x1b[31mred\x1b[0m\n", "red\n")


def test_a_reader_that_has_gone_is_no_error() -> None:
    program = (
        "import click, time\n"
        "from cmc_local import commands\n"
        "def action():\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "fake = click.Command('chat', callback=action)\n"
        "commands.Commands.get_command = lambda *_: fake\n"
        "commands.main(['chat'])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() in (0, 1, 141)


@pytest.mark.parametrize("words", ["--version", "inspect template", "generate hello -n 1"])
def test_closed_streams_are_no_error(words: str) -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m cmc_local {words} <&- >&-; echo $? >&2',
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stderr == "0\n"


def test_a_closed_stdin_holds_no_question() -> None:
    command = f'"{sys.executable}" -m cmc_local chat <&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cmc-local: error: stdin holds no question: write one on a line\n"


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cmc_local", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"cmc-local {__version__}\n"


def made(decorator: Any, *words: str) -> Any:
    """What a command with the shared option receives for these words."""
    received: list[dict[str, Any]] = []

    @click.command()
    @decorator
    def command(**values: Any) -> None:
        received.append(values)

    command.main(list(words), standalone_mode=False)
    return next(iter(received[0].values()))


def test_adapters_are_repeatable_each_with_its_strength(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    chosen = made(options.adapters, "--adapter", f"{first}:-0.5", "-a", str(second))
    assert chosen == (
        places.AdapterChoice(first, -0.5),
        places.AdapterChoice(second, None),
    )
    assert made(options.adapters) == ()


def test_sampling_options_become_settings() -> None:
    words = "--temperature 0 --top-k 5 --stop END --stop STOP -n 9 --seed 7".split()
    assert made(options.sampling, *words) == Sampling(
        temperature=0.0, top_k=5, stop=("END", "STOP"), max_tokens=9, seed=7
    )
    assert made(options.sampling) == Sampling()


def test_every_setting_has_an_option() -> None:
    words = {
        options.sampling: Sampling,
        options.control: Control,
        options.limits: Limits,
        options.devices: options.Devices,
    }
    own = {"parallel"}  # `generate` alone writes several replies at once
    for decorator, settings in words.items():
        command = click.command()(decorator(lambda **_: None))
        assert {option.name for option in command.params} == set(settings.__slots__) - own
    assert own <= {option.name for option in generate.command.params}


def test_a_logit_bias_names_token_and_number() -> None:
    biased = made(options.sampling, "--logit-bias", "15:-2.5", "--logit-bias", "7:-inf")
    assert biased.logit_bias == ((15, -2.5), (7, float("-inf")))
    with pytest.raises(CmcError, match="--logit-bias 15: give ID:BIAS"):
        made(options.sampling, "--logit-bias", "15")


def test_a_grammar_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes"')
    assert made(options.sampling, "--grammar", f"@{tmp_path}/yes.gbnf").grammar == 'root ::= "yes"'
    with pytest.raises(CmcError, match="cannot read"):
        made(options.sampling, "--grammar", f"@{tmp_path}/no.gbnf")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_device_is_taken(device: str) -> None:
    assert made(options.devices, "--delta-device", device).delta_device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", ""])
def test_an_unknown_device_is_wrong_use(device: str) -> None:
    with pytest.raises(UsageError, match="give auto, cpu, cuda or cuda:N"):
        made(options.devices, "--delta-device", device)
