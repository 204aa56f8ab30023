"""A chat apart from its terminal: messages, settings, slash commands.

    line --> ChatSession.handle --> a question: SteeredModel.stream --> Screen
                              `-> a command:  settings, alphas    --> Screen.note
                                              chat_file.py        --> a saved chat

Knows no terminal; `Screen` is what it draws on. Nothing here ends the program: errors of one
question are for the caller to show.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, get_args

from cmc_local.commands import chat_file
from cmc_local.commands.chat_settings import SETTINGS, changed, number
from cmc_local.engine.timings import Timings
from cmc_local.errors import CmcError, UsageError
from cmc_local.hub.places import parse_adapter
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message

HELP = '''\
/set NAME VALUE    system, temperature, seed, max_tokens, stop, ...; /set alone shows them all
/alpha [NAME] X    strength of one adapter or of all; /alpha alone shows them
/adapter           list; /adapter on|off NAME; /adapter add PATH[:ALPHA]
/compare QUESTION  answer plain and steered, side by side where 80 columns are; /compare alone
                   does so for every question, or no more
/regen             answer the last question again
/save FILE         write the conversation, its settings and strengths as JSON
/load FILE         go on with a saved conversation, in place of this one
/clear             forget the conversation
/bye               leave (or Ctrl-D)
"""                begins and ends a question of several lines; Ctrl-C stops a reply'''


class Pane(Protocol):
    """Where an answer is drawn: the whole width, or a column."""

    def think(self, text: str) -> None:
        """A part of the thoughts before an answer."""

    def write(self, text: str) -> None:
        """A part of an answer."""

    def end(self, timings: Timings) -> None:
        """The answer is over."""


class Screen(Pane, Protocol):
    """Where a chat is drawn."""

    def columns(self, labels: Sequence[str]) -> AbstractContextManager[Sequence[Pane] | None]:
        """A column for each answer, under its label; None where they would be too narrow."""

    def label(self, text: str) -> None:
        """Whose answer comes next, where two are compared one after the other."""

    def note(self, text: str) -> None:
        """Anything that is no answer."""

    def cancelled(self) -> bool:
        """Whether Ctrl-C has asked to stop this answer."""


class ChatSession:
    """One conversation with one model."""

    def __init__(
        self,
        model: SteeredModel,
        screen: Screen,
        sampling: Sampling,
        *,
        system: str | None = None,
        base_prompt: BasePrompt | None = None,
        name: str = "",
    ) -> None:
        """`name` is the GGUF's file name, for what is saved."""
        self.model = model
        self.name = name
        self.screen = screen
        self.sampling = sampling
        self.system = system
        self.base_prompt = base_prompt
        self.comparing = False
        self.history: list[Message] = []
        """Questions and answers so far, without the system text."""
        self._switched_off: dict[str, float] = {}
        self._told: set[str] = set()

    def handle(self, text: str) -> bool:
        """One question or command; False when the reader wants to leave."""
        if not text.strip():
            return True
        if not text.startswith("/"):
            self.ask(text)
            return True
        name, _, rest = text.strip().partition(" ")
        if name in ("/bye", "/exit", "/quit"):
            return False
        command = self._commands().get(name)
        if command is None:
            raise UsageError(f"no command {name}: /? lists them")
        command(rest.strip())
        return True

    def ask(self, question: str, *, compare: bool | None = None) -> None:
        """Answer a question and remember both; one that fails is forgotten."""
        self.history.append({"role": "user", "content": question})
        try:
            if self.comparing if compare is None else compare:
                answer = self._compare()
            else:
                answer = self._answer(None, self.screen)
        except BaseException:
            self.history.pop()
            raise
        if answer:
            self.history.append({"role": "assistant", "content": answer})
        else:  # nothing to go on from
            self.history.pop()

    def _compare(self) -> str:
        """Answer plain, then steered; the steered answer, or the plain one if Ctrl-C came first."""
        sides = (("plain", 0.0), (self.steering(), None))
        answers: list[str] = []
        with self.screen.columns([label for label, _ in sides]) as columns:
            for side, (label, alphas) in enumerate(sides):
                if self.screen.cancelled():
                    break
                if columns is None:
                    self.screen.label(label)
                pane = self.screen if columns is None else columns[side]
                answers.append(self._answer(alphas, pane))
        plain, steered = (*answers, "", "")[:2]
        if steered or not self.screen.cancelled():
            return steered
        if plain:
            self.screen.note("stopped: the conversation goes on from the plain answer")
        return plain

    def _answer(self, alphas: float | None, pane: Pane) -> str:
        """Stream one answer to a pane; its text."""
        parts = []
        stream = self.model.stream(
            self._messages(),
            self.sampling,
            alphas=alphas,
            base_prompt=self.base_prompt,
            cancelled=self.screen.cancelled,
        )
        for piece in stream:
            if piece.notice:
                self._tell_once(piece.notice)
            if piece.thinking:
                pane.think(piece.thinking)
            if piece.text:
                parts.append(piece.text)
                pane.write(piece.text)
            if piece.timings is not None:
                pane.end(piece.timings)
        return "".join(parts)

    def _messages(self) -> list[Message]:
        if not self.system:
            return self.history
        return [{"role": "system", "content": self.system}, *self.history]

    def _tell_once(self, notice: str) -> None:
        kind = notice.split(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            self.screen.note(notice)

    def steering(self) -> str:
        """What steers now, such as `instruct 0.8 + forget 1`."""
        acting = [f"{name} {alpha:g}" for name, alpha in self.model.alphas.items() if alpha]
        return " + ".join(acting) or "plain"

    def completions(self, command: str) -> list[str]:
        """What may follow a slash command; the commands themselves where it is empty."""
        adapters = list(self.model.adapters)
        follow = {
            "": [*self._commands(), "/bye"],
            "/set": ["system", "base_prompt", *SETTINGS],
            "/alpha": adapters,
            "/adapter": ["list", "on", "off", "add"],
            "/adapter on": adapters,
            "/adapter off": adapters,
        }
        return follow.get(command, [])

    # --- commands ----------------------------------------------------------------------------

    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/?": self._help,
            "/help": self._help,
            "/set": self._set,
            "/alpha": self._alpha,
            "/adapter": self._adapter,
            "/compare": self._toggle_or_compare,
            "/regen": self._regenerate,
            "/save": self._save,
            "/load": self._load,
            "/clear": self._clear,
        }

    def _help(self, rest: str) -> None:
        self.screen.note(HELP)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if not name:
            self.screen.note("\n".join(self._settings()))
        elif name == "system":
            self.system = value or None
        elif name == "base_prompt":
            if value not in get_args(BasePrompt):
                raise UsageError(f"base_prompt must be one of {', '.join(get_args(BasePrompt))}")
            self.base_prompt = value  # type: ignore[assignment]
        else:
            self.sampling = changed(self.sampling, name, value)

    def _settings(self) -> Iterator[str]:
        yield f"system = {self.system or ''}"
        yield f"base_prompt = {self.model.base_prompt_form(self.base_prompt).kind}"
        for name in SETTINGS:
            value = getattr(self.sampling, name)
            if isinstance(value, bool):
                value = "on" if value else "off"
            yield f"{name} = {'' if value in (None, ()) else value}"

    def _alpha(self, rest: str) -> None:
        words = rest.split()
        if words:
            name, value = (None, words[0]) if len(words) == 1 else (words[0], words[-1])
            strength = number(value, "alpha")
            for one in self._named(name):
                self.model.set_alpha(one, strength)
        self._show_adapters()

    def _adapter(self, rest: str) -> None:
        verb, _, name = rest.partition(" ")
        name = name.strip()
        if verb == "add" and name:
            choice = parse_adapter(name)
            self.model.add(choice.path, choice.alpha)
        elif verb == "off":
            for one in self._named(name or None):
                self._switched_off.setdefault(one, self.model.alphas[one])
                self.model.set_alpha(one, 0.0)
        elif verb == "on":
            for one in self._named(name or None):
                before = self._switched_off.pop(one, self.model.adapters[one].alpha)
                self.model.set_alpha(one, self.model.alphas[one] or before)
        elif verb not in ("", "list"):
            raise UsageError("/adapter takes list, on NAME, off NAME or add PATH[:ALPHA]")
        self._show_adapters()

    def _named(self, name: str | None) -> list[str]:
        if name is not None and name not in self.model.adapters:
            raise UsageError(f"no adapter {name!r}: /adapter lists them")
        return [name] if name is not None else list(self.model.adapters)

    def _show_adapters(self) -> None:
        lines = [
            f"{name}  alpha {alpha:g}" + ("" if alpha else "  (off)")
            for name, alpha in self.model.alphas.items()
        ]
        self.screen.note("\n".join(lines) or "no adapters: /adapter add PATH[:ALPHA]")

    def _toggle_or_compare(self, rest: str) -> None:
        if rest:
            self.ask(rest, compare=True)
            return
        self.comparing = not self.comparing
        self.screen.note("comparing " + ("every question" if self.comparing else "no more"))

    def _regenerate(self, rest: str) -> None:
        if not self.history:
            raise UsageError("there is no question to answer again")
        before = self.history[-2:]
        del self.history[-2:]
        count = len(self.history)
        try:
            self.ask(before[0]["content"])
        finally:
            if len(self.history) == count:  # it failed, or was stopped before the first word
                self.history += before

    def _save(self, rest: str) -> None:
        path = chat_file.place(rest, "/save")
        saved = chat_file.SavedChat(
            model=self.name,
            alphas=dict(self.model.alphas),
            base_prompt=self.base_prompt,
            system=self.system,
            sampling=self.sampling,
            messages=self.history,
        )
        chat_file.save(path, saved)
        self.screen.note(f"saved {_counted(self.history)} in {path}")

    def _load(self, rest: str) -> None:
        path = chat_file.place(rest, "/load")
        saved = chat_file.load(path)
        self._clear("")
        self.history = saved.messages
        self.system, self.sampling = saved.system, saved.sampling
        self.screen.note(f"loaded {_counted(self.history)} from {path}")
        if saved.model != self.name:
            self.screen.note(f"saved with the model {saved.model}; now {self.name} answers")
        try:
            self.model.base_prompt_form(saved.base_prompt)
            self.base_prompt = saved.base_prompt
        except CmcError as error:
            self.screen.note(f"base_prompt stays as it is: {error}")
        for name in self.model.alphas:
            if name in saved.alphas:
                self.model.set_alpha(name, saved.alphas[name])
                self._switched_off.pop(name, None)
        for names, told in (
            (saved.alphas.keys() - self.model.alphas.keys(), "not loaded here: /adapter add PATH"),
            (self.model.alphas.keys() - saved.alphas.keys(), "not in the file: stays as it is"),
        ):
            if names:
                self.screen.note(f"{', '.join(sorted(names))}: {told}")

    def _clear(self, rest: str) -> None:
        self.history.clear()
        self._told.clear()


def _counted(messages: Sequence[Message]) -> str:
    questions = len(messages) // 2
    return f"{questions} answered question" + ("" if questions == 1 else "s")


def read_question(read_line: Callable[[], str]) -> str:
    """One question; several lines of it between two `\"\"\"`. Raises EOFError at the end."""
    first = read_line()
    if not first.lstrip().startswith('"""'):
        return first
    lines = [first.lstrip()[3:]]
    with contextlib.suppress(EOFError):  # the end of the input ends the question
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(read_line())
        lines[-1] = lines[-1].rstrip()[:-3]
    return "\n".join(lines).strip("\n")
