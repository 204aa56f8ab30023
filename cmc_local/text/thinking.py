"""Thoughts before an answer: the marks that enclose them, and which part of a reply is which.

    a chat template with "</think>"  --marks_of-->  Marks("<think>", "</think>")
    "<think>Two and two.</think>Four."  --ThoughtReader-->  "Two and two." and "Four."

Some chat templates write the opening mark themselves, at the end of the prompt. Knows texts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around thoughts."""

    begin: str
    end: str


KNOWN: Final = (
    Marks("<think>", "</think>"),
    Marks("<thinking>", "</thinking>"),
    Marks("<thought>", "</thought>"),
    Marks("<reasoning>", "</reasoning>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""The marks in use, the most usual ones first."""


def marks_of(template: str | None) -> Marks | None:
    """The marks that a chat template names, by the one that ends thoughts."""
    return next((one for one in KNOWN if template is not None and one.end in template), None)


def without_thoughts(answer: str) -> str:
    """An earlier answer less the thoughts that it begins with.

    >>> without_thoughts("<think>Two and two.</think>\\n\\nFour.")
    'Four.'
    """
    for marks in KNOWN:
        if answer.lstrip().startswith(marks.begin) and marks.end in answer:
            return answer.partition(marks.end)[2].lstrip()
    return answer


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether and how one reply may think."""

    marks: Marks
    is_open: bool
    """Whether the prompt ends with the opening mark, so that the reply begins with thoughts."""

    @classmethod
    def of(cls, marks: Marks | None, prompt: str, begun: str) -> Thinking | None:
        """None where there are no marks, or the answer itself has begun already.

        `prompt` is the base's prompt, which ends in `begun`, what the answer is to go on from.
        """
        if marks is None:
            return None
        if begun.strip():
            is_open = begun.rfind(marks.begin) > begun.rfind(marks.end)
        else:
            is_open = prompt.rstrip().endswith(marks.begin)
        return None if begun.strip() and not is_open else cls(marks, is_open)


class ThoughtReader:
    """Divides the text of one reply, as it comes, into thoughts and answer.

    White space around either is dropped, as chat templates drop it.
    """

    def __init__(self, thinking: Thinking) -> None:
        self._marks = thinking.marks
        self._state: Literal["start", "thinking", "between", "answer"] = (
            "thinking" if thinking.is_open else "start"
        )
        self._held = ""
        self._told = False  # some thought has been given
        self._closed = False  # the closing mark has come

    @property
    def answering(self) -> bool:
        """Whether the answer itself has begun."""
        return self._state == "answer"

    @property
    def thinking(self) -> bool:
        """Whether the reply is within its thoughts."""
        return self._state == "thinking"

    @property
    def thought(self) -> bool:
        """Whether there are thoughts, or were."""
        return self._state in ("thinking", "between") or self._closed

    def answer_anew(self) -> None:
        """Forget what the answer began with: another beginning comes."""
        self._held = ""
        self._state = "between" if self._closed else "answer"

    def read(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """(thoughts, answer) that `text` sets free; with `last` nothing is held back any more."""
        self._held += text
        thoughts = ""
        if self._state == "start":
            self._leave_start(last=last)
        if self._state == "thinking":
            thoughts = self._thoughts(last=last)
        if self._state == "between" and (answer := self._held.lstrip()):
            self._state, self._held = "answer", answer
        if self._state != "answer":
            return thoughts, ""
        answer, self._held = self._held, ""
        return thoughts, answer

    def _leave_start(self, *, last: bool) -> None:
        """Decide what the reply begins with, once that is clear."""
        begin, seen = self._marks.begin, self._held.lstrip()
        if seen.startswith(begin):
            self._state, self._held = "thinking", seen.removeprefix(begin)
        elif last or not begin.startswith(seen):  # an empty text may become anything
            self._state = "answer"

    def _thoughts(self, *, last: bool) -> str:
        """The thoughts that are sure to be such, up to the closing mark."""
        if not self._told:
            self._held = self._held.lstrip()
        found, closed, rest = self._held.partition(self._marks.end)
        if closed:
            self._state, self._held, self._closed = "between", rest, True
            return found.rstrip()
        keep = 0 if last else _overlap(found, self._marks.end)
        sure = found[: len(found) - keep].rstrip()
        self._held = "" if last else found[len(sure) :]
        self._told = self._told or bool(sure)
        return sure


def _overlap(text: str, mark: str) -> int:
    """How many last characters of a text may be the beginning of a mark."""
    most = min(len(text), len(mark) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
