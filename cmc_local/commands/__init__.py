"""`cmc-local`: one click command a file, imported when it is called.

The group knows the names and one-line helps up front, so that `cmc-local --help` loads nothing of
the runtime. It is also the edge where errors become exit codes:

    CmcError            `cmc-local: error: ...` on stderr, exit with the error's own code (1 or 2)
    a wrong option      the same, with the place to look, exit 2
    Ctrl-C              exit 130
    anything else       `internal error`, exit 1; the traceback with --debug or CMC_DEBUG=1
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from cmc_local import __version__, offline
from cmc_local.errors import CmcError

NAME: Final = "cmc-local"

COMMANDS: Final = (
    ("chat", "Talk to a GGUF model that adapters steer."),
    ("generate", "Answer a prompt, stdin, or a JSONL file of prompts."),
    ("serve", "Serve a steered model to OpenAI clients and a browser."),
    ("pretrain", "Train a delta as a plain language model on text files."),
    ("record", "Ask a template once what training needs of it."),
    ("train", "Train a delta beside a frozen template model."),
    ("finetune", "Fine-tune a GGUF or a folder itself, whole or by LoRA."),
    ("export", "Pack a trained delta into an adapter."),
    ("adapter", "Share adapters: push to and pull from a Hugging Face hub."),
    ("map", "Show how one vocabulary is carried over to another."),
    ("inspect", "Say what a GGUF file or an adapter is."),
    ("eval", "Measure what adapters change."),
    ("tune-alpha", "Find an adapter's best strength for a GGUF model."),
    ("bench", "Measure how fast steering is on this machine."),
    ("demo", "See it work on the bundled models."),
    ("doctor", "Check this installation, and say what to type."),
)


class Commands(click.Group):
    """A group that imports `cmc_local.commands.<name>` when `<name>` is asked for.

    A dash in the name is an underscore in the module's.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, _ in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = cmd_name.replace("-", "_")
        command = import_module(f"cmc_local.commands.{module}").command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands that begin so; click's own method would import each of them."""
        found = [CompletionItem(name, help=told) for name, told in COMMANDS]
        fitting = [item for item in found if item.value.startswith(incomplete)]
        return [*fitting, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(COMMANDS)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; what goes wrong ends as one line on stderr."""
        _open_streams()
        arguments = list(sys.argv[1:] if args is None else args)
        debug = _debug_wanted(arguments)
        extra.setdefault("color", _color())
        try:
            with offline.switched(on=_given(arguments, "--offline") or offline.wanted()):
                result = super().main(
                    _without_flags(arguments), prog_name or NAME, complete_var, False, **extra
                )
            sys.stdout.flush()
        except (SystemExit, click.exceptions.Exit):
            raise
        except BaseException as error:
            if not standalone_mode:
                raise
            if debug:
                traceback.print_exc()
            sys.exit(_report(error))
        code = result if type(result) is int else 0
        return sys.exit(code) if standalone_mode else code


@click.group(NAME, cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option("--offline", is_flag=True, expose_value=False, help="Never use the network.")
def main() -> None:
    """Train one tiny model once and let it steer every local GGUF model."""


def _open_streams() -> None:
    """Put /dev/null where a standard stream was closed before the start, as by `>&-`.

    Python has None there, which nothing can write to, and the next file that is opened would get
    the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _options(arguments: list[str]) -> list[str]:
    """The words before a bare `--`, after which nothing is an option."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _given(arguments: list[str], flag: str) -> bool:
    return flag in _options(arguments)


def _debug_wanted(arguments: list[str]) -> bool:
    return _given(arguments, "--debug") or os.environ.get("CMC_DEBUG", "0") not in ("", "0")


def _without_flags(arguments: list[str]) -> list[str]:
    """The words but for --debug and --offline, which may stand anywhere."""
    options = _options(arguments)
    kept = [word for word in options if word not in ("--debug", "--offline")]
    return kept + arguments[len(options) :]


def _color() -> bool | None:
    """False with NO_COLOR; None lets click look whether a terminal listens."""
    return False if os.environ.get("NO_COLOR") else None


def _report(error: BaseException) -> int:
    """One line on stderr; the exit code."""
    match error:
        case BrokenPipeError():
            return _close_quietly()
        case KeyboardInterrupt():
            return 130
        case click.Abort():  # click's form of Ctrl-C, and of an end of input at a question
            return 130
        case CmcError():
            return _say(str(error), error.exit_code)
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return 2
        case click.UsageError():
            return _say(_usage(error), 2)
        case click.ClickException():
            return _say(error.format_message(), error.exit_code)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = f"no room is left to write to ({error.strerror})"
            return _say(f"{told}: make some, and run the command again", 1)
        case OSError() if error.filename is not None:
            return _say(f"{error.filename}: {error.strerror or error}", 1)
        case _:
            told = f"internal error: {type(error).__name__}: {error}"
            return _say(f"{told}; run again with --debug to see where", 1)


def _say(message: str, code: int) -> int:
    click.echo(f"{NAME}: error: {' '.join(message.split())}", err=True)
    return code


def _usage(error: click.UsageError) -> str:
    place = error.ctx.command_path if error.ctx is not None else NAME
    message = error.format_message().strip().rstrip(".")
    return f"{message} (see `{place} --help`)"


def _close_quietly() -> int:
    """End without a message: whoever read our stdout has closed it, as `| head` does.

    The interpreter flushes stdout once more as it ends; that must not print an error either.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
