"""Messages -> the base model's prompt text and the delta's prompt segments.

Knows no tokenizer and no model: text only. A *form* is the fixed shape a delta was trained with:

    >>> form = named_form("cmc")
    >>> base_text(form, [{"role": "user", "content": "Where is {it}?"}])
    '<|user|>\\nWhere is {it}?\\n<|assistant|>\\n'

A form that wants a space before the answer ends in one: the answer's own leading spaces are always
dropped (`answer_text`), in training and at run time, so both see the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypedDict

from cmc_local.errors import UsageError

QUERY: Final = "{query}"
SYSTEM: Final = "{system}"

Turns = Literal["all", "last"]


class Message(TypedDict):
    """One message in OpenAI's chat shape; `role` is system, user or assistant."""

    role: str
    content: str


class EndOfAnswer(Enum):
    """Stands for the delta's EOS token between the segments of a conversation."""

    EOS = "eos"


@dataclass(frozen=True, slots=True)
class PromptForm:
    """The shape of one delta's prompts."""

    name: str
    turn: str
    """One question, up to where the answer begins; holds `{query}` once."""
    system: str = "{system}\n"
    """Put before the first question; empty leaves system texts out."""
    separator: str = "\n"
    """What follows an answer where a conversation is written as text (the delta gets EOS there)."""

    def __post_init__(self) -> None:
        if self.turn.count(QUERY) != 1:
            raise UsageError(
                f"prompt form {self.name!r} must hold {QUERY} exactly once, not "
                f"{self.turn.count(QUERY)} times: {self.turn!r}"
            )
        if self.system and self.system.count(SYSTEM) != 1:
            raise UsageError(
                f"the system part of prompt form {self.name!r} must hold {SYSTEM} exactly once "
                f"or be empty: {self.system!r}"
            )

    def question(self, query: str, system: str | None = None) -> str:
        """The text up to where the answer begins. Braces in `query` are plain text."""
        before, after = self.turn.split(QUERY)
        return self._system_part(system) + before + query + after

    def _system_part(self, system: str | None) -> str:
        if not system or not self.system:
            return ""
        before, after = self.system.split(SYSTEM)
        return before + system + after


def named_forms() -> dict[str, PromptForm]:
    """The forms known by name; `cmc` and `inst` are those of the paper's published deltas."""
    forms = (
        PromptForm("cmc", "<|user|>\n{query}\n<|assistant|>\n"),
        PromptForm("inst", "[INST] {query} [/INST] "),
        PromptForm(
            "alpaca",
            "### Instruction:\n{query}\n\n### Response:\n",
            system="{system}\n\n",
            separator="\n\n",
        ),
        PromptForm(
            "chatml",
            "<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n",
            system="<|im_start|>system\n{system}<|im_end|>\n",
            separator="<|im_end|>\n",
        ),
        PromptForm("plain", "{query}\n"),
    )
    return {form.name: form for form in forms}


def named_form(text: str) -> PromptForm:
    """A form by its name, or a new one called `custom` from a template text holding `{query}`."""
    forms = named_forms()
    if text in forms:
        return forms[text]
    if QUERY not in text:
        raise UsageError(
            f"no prompt form {text!r}: choose one of {', '.join(forms)}, "
            f"or give a template text that holds {QUERY}"
        )
    return PromptForm("custom", text)


def answer_text(text: str) -> str:
    """An answer as the delta sees it: without leading spaces (newlines stay)."""
    return text.lstrip(" ")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question in its form and its answer; the open last question has none."""

    question: str
    answer: str | None


def exchanges(
    form: PromptForm, messages: Sequence[Message], *, turns: Turns = "all"
) -> list[Exchange]:
    """Checked messages as exchanges; the system text stands before the first one kept.

    Raises UsageError for messages out of order. `turns="last"` keeps the last exchange only.
    """
    system, pairs = _pairs(messages)
    if turns == "last":
        pairs = pairs[-1:]
    return [
        Exchange(
            form.question(query, system if i == 0 else None),
            None if answer is None else answer_text(answer),
        )
        for i, (query, answer) in enumerate(pairs)
    ]


def open_exchanges(
    form: PromptForm, messages: Sequence[Message], *, turns: Turns = "all"
) -> list[Exchange]:
    """`exchanges` of a conversation that awaits an answer; refuses an empty question."""
    found = exchanges(form, messages, turns=turns)
    if found[-1].answer is not None:
        raise UsageError("the last message must have the role user, not assistant")
    if not messages[-1]["content"].strip():
        raise UsageError("the question is empty: write one")
    return found


def base_text(form: PromptForm, messages: Sequence[Message], *, turns: Turns = "all") -> str:
    """The base model's prompt in the adapter's form: earlier answers followed by the separator.

    The base sees every turn unless the adapter knows single turns only (`turns="last"`).
    """
    return "".join(
        exchange.question
        if exchange.answer is None
        else exchange.question + exchange.answer + form.separator
        for exchange in open_exchanges(form, messages, turns=turns)
    )


def delta_segments(
    form: PromptForm, messages: Sequence[Message], *, turns: Turns = "all"
) -> list[str | EndOfAnswer]:
    """The delta's prompt: question and answer as one text, EOS after it, the open question last.

    For two turns: `["<|user|>\\nA\\n<|assistant|>\\nB", EOS, "<|user|>\\nC\\n<|assistant|>\\n"]`.
    """
    segments: list[str | EndOfAnswer] = []
    for exchange in open_exchanges(form, messages, turns=turns):
        if exchange.answer is None:
            segments.append(exchange.question)
        else:
            segments += [exchange.question + exchange.answer, EndOfAnswer.EOS]
    return segments


def _pairs(messages: Sequence[Message]) -> tuple[str | None, list[tuple[str, str | None]]]:
    """The system text, and (question, answer or None) pairs in order."""
    check_messages(messages)
    rest = list(messages)
    system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else None
    if not rest:
        raise UsageError("there is no message with the role user: give one")
    for i, message in enumerate(rest):
        expected = "user" if i % 2 == 0 else "assistant"
        if message["role"] != expected:
            number = i + 1 + (system is not None)
            raise UsageError(
                f"message {number} must have the role {expected}, not {message['role']}: "
                "user and assistant take turns, after at most one system message"
            )
    texts = [message["content"] for message in rest]
    answers: list[str | None] = [*texts[1::2]]
    if len(texts) % 2:
        answers.append(None)
    return system, list(zip(texts[::2], answers, strict=True))


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UsageError for a message whose role or text is none."""
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise UsageError(
                f"message {number} has the role {role!r}: use system, user or assistant"
            )
        if not isinstance(content, str):
            raise UsageError(f"message {number} has no text: its content must be a string")
