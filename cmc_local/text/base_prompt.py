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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.text.chat_template import chat_template_text
from cmc_local.text.history import History, without_system
from cmc_local.text.prompts import (
    Message,
    PromptForm,
    Turns,
    base_text,
    named_form,
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

    values: Mapping[str, Any] = field(default_factory=dict)
    """What the GGUF's template is told beside the conversation."""

    def text(self, base: TextModel, history: History) -> PromptText:
        """The prompt for a conversation that awaits an answer, and what that begins with."""
        if self.kind == "raw":
            text = "\n".join(message["content"] for message in history.folded)
        elif self.kind == "adapter":
            text = base_text(self.form, history.folded, turns=self.turns)
        else:
            found = _template_text(base, history, self.values)
            return replace(found, text=found.text + history.begun)
        return PromptText(text + history.begun, special=False)


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

    prompt: PromptText
    tokens: tuple[int, ...]
    dropped: int
    """How many of the oldest turns went."""


def fit(
    base: TextModel,
    form: BasePromptForm,
    history: History,
    *,
    context: int,
    reserve: int,
) -> Fitted:
    """The newest turns that leave `reserve` tokens of the context to the reply."""
    head, turns = _turns(history.turns)

    def without(oldest: int) -> Fitted:
        kept = [*head, *(message for turn in turns[oldest:] for message in turn)]
        prompt = form.text(base, replace(history, turns=tuple(kept)))
        tokens = base.tokenize(prompt.text, special=prompt.special, bos=prompt.bos)
        return Fitted(prompt, tuple(tokens), oldest)

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


def _template_text(base: TextModel, history: History, values: Mapping[str, Any]) -> PromptText:
    """The turns as they are; where the template refuses them, folded, then without system text."""
    vocabulary = base.vocabulary
    bos, eos = _name(vocabulary, vocabulary.bos_id), _name(vocabulary, vocabulary.eos_id)
    refused: UsageError | None = None
    tried: list[Sequence[Mapping[str, Any]]] = []
    for turns in (history.turns, history.folded, without_system(history.folded)):
        if any(list(turns) == list(one) for one in tried):
            continue
        tried.append(turns)
        try:
            text = chat_template_text(
                base.chat_template or "", turns, bos=bos, eos=eos, values=values
            )
        except UsageError as error:
            refused = refused or error
            continue
        written = bool(bos) and text.startswith(bos)  # the template wrote BOS itself
        return PromptText(text, special=True, bos=False if written else None)
    assert refused is not None
    raise refused


def _name(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.names[token]


def _turns(
    messages: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The system text, and the turns: each a question and what follows it."""
    head: list[dict[str, Any]] = []
    turns: list[list[dict[str, Any]]] = []
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
