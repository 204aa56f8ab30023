"""Messages -> the base model's prompt tokens, within its context.

Three ways to ask a base model (`--base-prompt`):

    gguf      the chat template that the GGUF carries; special tokens in it are parsed
    adapter   the adapter's prompt form; every text is plain text, also a "</s>" in a question
    raw       the messages' texts as they are, one below the other

Knows tokens and texts, nothing of decoding. When the context is full whole oldest turns go and the
system text stays; one prompt that cannot fit at all is an error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.text.chat_template import chat_template_text
from cmc_local.text.prompts import (
    Message,
    PromptForm,
    Turns,
    base_text,
    named_form,
    open_exchanges,
)
from cmc_local.text.vocabulary import Vocabulary

BasePrompt = Literal["gguf", "adapter", "raw"]


Prompt = str | Sequence[Message]
"""A question, or a conversation in OpenAI's chat shape."""


def as_messages(prompt: Prompt) -> list[Message]:
    """A conversation; a bare text is its only question."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return list(prompt)


class TextModel(Protocol):
    """What is asked of a base model here."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def chat_template(self) -> str | None: ...
    def tokenize(
        self, text: str, *, special: bool = False, bos: bool | None = None
    ) -> list[int]: ...


@dataclass(frozen=True)
class PromptText:
    """A prompt before tokenisation."""

    text: str
    special: bool
    """Whether special tokens written out in the text are meant as such."""
    bos: bool | None = None
    """Whether BOS comes first; None leaves it to the GGUF's own settings."""


@dataclass(frozen=True)
class BasePromptForm:
    """How conversations become the base model's prompt; `form` and `turns` are the adapter's."""

    kind: BasePrompt
    form: PromptForm
    turns: Turns = "all"

    def text(self, base: TextModel, messages: Sequence[Message]) -> PromptText:
        """The prompt for a conversation that awaits an answer."""
        open_exchanges(self.form, messages)
        if self.kind == "raw":
            return PromptText("\n".join(message["content"] for message in messages), special=False)
        if self.kind == "adapter":
            return PromptText(base_text(self.form, messages, turns=self.turns), special=False)
        return _template_text(base, messages)


def choose_form(
    base: TextModel, kind: BasePrompt | None, form: PromptForm | None, turns: Turns = "all"
) -> BasePromptForm:
    """`kind`, or by default the GGUF's template if it has one and else the adapter's form.

    Without an adapter the form is the named form `plain`.
    """
    if kind == "gguf" and base.chat_template is None:
        raise UsageError(
            "this GGUF carries no chat template: ask it with --base-prompt adapter or raw"
        )
    if kind is None:
        kind = "gguf" if base.chat_template is not None else "adapter"
    return BasePromptForm(kind, form or named_form("plain"), turns)


@dataclass(frozen=True)
class Fitted:
    """A conversation that fits the context."""

    messages: tuple[Message, ...]
    prompt: PromptText
    tokens: tuple[int, ...]
    dropped: int
    """How many of the oldest turns went."""


def fit(
    base: TextModel,
    form: BasePromptForm,
    messages: Sequence[Message],
    *,
    context: int,
    reserve: int,
) -> Fitted:
    """The newest turns that leave `reserve` tokens of the context to the reply."""
    head, turns = _turns(messages)

    def without(oldest: int) -> Fitted:
        kept = [*head, *(message for turn in turns[oldest:] for message in turn)]
        prompt = form.text(base, kept)
        tokens = base.tokenize(prompt.text, special=prompt.special, bos=prompt.bos)
        return Fitted(tuple(kept), prompt, tuple(tokens), oldest)

    def fits(tried: Fitted) -> bool:
        return len(tried.tokens) + reserve <= context

    fitted = without(0)
    if not fits(fitted) and len(turns) > 1:  # bisected: a chat template takes a while to render
        counts = range(1, len(turns) - 1)
        fitted = without(1 + bisect_left(counts, True, key=lambda oldest: fits(without(oldest))))
    if len(fitted.tokens) >= context:
        raise PromptTooLong(too_long(len(fitted.tokens), context))
    return fitted


def too_long(tokens: int, context: int) -> str:
    """The line for a prompt that does not fit."""
    return (
        f"the prompt has {tokens} tokens, but the base model's context holds {context}, the reply "
        "included: shorten the prompt, or give a larger --context if the model allows it"
    )


def _template_text(base: TextModel, messages: Sequence[Message]) -> PromptText:
    vocabulary = base.vocabulary
    bos, eos = _name(vocabulary, vocabulary.bos_id), _name(vocabulary, vocabulary.eos_id)
    text = chat_template_text(base.chat_template or "", messages, bos=bos, eos=eos)
    written = bool(bos) and text.startswith(bos)  # the template wrote BOS itself
    return PromptText(text, special=True, bos=False if written else None)


def _name(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.names[token]


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system text, and the turns: each a question and what follows it."""
    head: list[Message] = []
    turns: list[list[Message]] = []
    for message in messages:
        if message.get("role") == "system" and not turns:
            head.append(message)
        elif message.get("role") == "user" or not turns:
            turns.append([message])
        else:
            turns[-1].append(message)
    return head, turns


def continuation_tokens(
    base: TextModel, prompt: PromptText, tokens: Sequence[int], continuation: str
) -> list[int]:
    """The tokens of a text that goes on where a prompt ends.

    Prompt and continuation are tokenised together; where a token would span both, the continuation
    is tokenised after a newline instead, so that no tokenizer puts a space before it.
    """
    whole = base.tokenize(prompt.text + continuation, special=prompt.special, bos=prompt.bos)
    if whole[: len(tokens)] == list(tokens):
        return whole[len(tokens) :]
    return _after(base.tokenize, continuation)


def _after(tokenize: Callable[..., list[int]], text: str) -> list[int]:
    anchor = tokenize("\n", bos=False)
    whole = tokenize("\n" + text, bos=False)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else tokenize(text, bos=False)
