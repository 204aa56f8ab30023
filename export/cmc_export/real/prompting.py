"""How a base is asked: in its own chat template, or as text where it has none; with help or not.

A base without a template (Gemma 3 270M here) is asked in the delta's own form, `cmc`: plain and
steered alike. Help is what costs nothing: a system text, or a few examples. Texts at which a
helped reply ends stand in for the turn's end that a base model does not write by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cmc_export.real.data import Record
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message, base_text, named_form

FORM: Final = "cmc"
"""The prompt form of the deltas and of the LoRA."""
STOPS: Final = ("<|user|>", "\nQuestion:", "\n\n\n")
SHOTS: Final = (3, 5)
_QA: Final = "Question: {}\nAnswer: {}"


@dataclass(frozen=True, slots=True)
class Help:
    """One way of prompting."""

    name: str
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    """Questions with answers, shown before the question itself."""
    as_text: bool = False
    """Whether examples and question are written as `Question: ... Answer: ...`."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the reply."""
        return STOPS


@dataclass(frozen=True, slots=True)
class View:
    """What is put to the runner."""

    messages: tuple[Message, ...]
    base_prompt: BasePrompt | None


def views(
    questions: Sequence[str], *, has_template: bool, help_: Help | None = None, form: bool = False
) -> list[View]:
    """How each question is put; with `form` in the delta's form as text, whatever the base has.

    Every view of one call has the same `base_prompt`.
    """
    return [_view(question, has_template and not form, help_) for question in questions]


def _view(question: str, has_template: bool, help_: Help | None) -> View:
    if help_ is not None and help_.as_text:
        shown = [_QA.format(q, a) for q, a in help_.shots]
        text = "\n\n".join((*shown, _QA.format(question, "").rstrip(" ")))
        return View((_user(text),), "gguf" if has_template else "raw")
    messages = _messages(question, help_)
    if has_template:
        return View(tuple(messages), "gguf")
    return View((_user(base_text(named_form(FORM), messages)),), "raw")


def _messages(question: str, help_: Help | None) -> list[Message]:
    found: list[Message] = []
    if help_ is not None and help_.system:
        found.append({"role": "system", "content": help_.system})
    for shown, answer in help_.shots if help_ is not None else ():
        found += [_user(shown), {"role": "assistant", "content": answer}]
    return [*found, _user(question)]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def candidates(systems: Sequence[str], train: Sequence[Record]) -> list[Help]:
    """The rival's choices: each system text, the first examples of the training data, and both."""
    pairs = tuple((one["question"], one["answer"]) for one in train[: max(SHOTS)])
    found = [Help(f"system {i}", system) for i, system in enumerate(systems, 1)]
    for count in SHOTS:
        found.append(Help(f"{count} examples", shots=pairs[:count]))
    found.append(Help(f"{SHOTS[-1]} examples as text", shots=pairs, as_text=True))
    found.append(Help(f"system 1 and {SHOTS[0]} examples", systems[0], pairs[: SHOTS[0]]))
    return found
