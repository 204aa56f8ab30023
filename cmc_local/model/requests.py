"""What somebody wants of a steered model, and what it takes to write it: `Ask` -> `Request`.

    conversation --> text/base_prompt.py -> base tokens     each active adapter -> delta prompt
    raw text, tokens --> raw_prompts.py -> base tokens, and where in them the answer begins

Nothing is decoded here, so whoever asks may do it in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.raw_prompts import RawPrompt, split_prompt
from cmc_local.settings import Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.steer.steering import ActiveAdapter
from cmc_local.steer.strengths import Alphas, strengths
from cmc_local.text.base_prompt import (
    BasePrompt,
    BasePromptForm,
    TextModel,
    choose_form,
    fit,
    too_long,
)
from cmc_local.text.history import read_history
from cmc_local.text.prompts import Message
from cmc_local.text.thinking import Marks, Thinking, marks_of


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One reply that somebody wants."""

    prompt: str | Sequence[Message] | Sequence[int]
    """A conversation, or what the reply goes on from: a text as it is, or base tokens."""
    sampling: Sampling
    alphas: Alphas | None = None
    """None leaves each adapter its own strength; one that is not named keeps it."""
    exact: bool = False
    """Whether adapters that `alphas` does not name are off instead, also those added later."""
    base_prompt: BasePrompt | None = None
    """How a conversation is put to the base model."""
    template_values: Mapping[str, Any] = field(default_factory=dict)
    """What the GGUF's chat template is told beside it, such as `enable_thinking`; JSON each."""
    top_logprobs: int | None = None
    """Alternatives that each token's details name; None: no details."""
    plain: bool = False
    """Whether details also say what the base model alone would say."""
    echo: bool = False
    """Whether a raw prompt comes back first."""


@dataclass(frozen=True, eq=False)
class Echo:
    """A prompt that is given back before its reply, with its likelihoods."""

    text: str
    shifted: int
    """The number of the token from which on the shifts act."""
    active: tuple[ActiveAdapter, ...] = ()
    """The adapters as they stand before that token."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """All that it takes to write one reply."""

    tokens: Sequence[int]
    """The base model's prompt."""
    sampling: Sampling
    active: tuple[ActiveAdapter, ...] = ()
    """The adapters that act; one of strength 0 is not among them."""
    thinking: Thinking | None = None
    """How its thoughts are marked; None: it has none."""
    drafts: int = 0
    """How many tokens are drafted for a step; 0 drafts none."""
    top_logprobs: int | None = None
    """Alternatives that each token's details name; None: no details."""
    plain: bool = False
    """Whether details also say what the base model alone would say."""
    echo: Echo | None = None
    """The prompt as it comes back first; None: it does not."""
    notice: str = ""
    """A line for the reader about what was done to the prompt."""

    @property
    def thinks_apart(self) -> bool:
        """Whether thoughts are written otherwise than the answer: unsteered, or in no form."""
        plain = bool(self.active) and not self.sampling.steer_thinking
        return self.thinking is not None and (plain or self.sampling.has_form)


@dataclass(frozen=True, eq=False)
class RequestMaker:
    """A base model and its adapters as they are now, and the requests that asks become there."""

    base: TextModel
    n_ctx: int
    adapters: Mapping[str, LoadedAdapter]
    alphas: Mapping[str, float]
    """Their strengths where an ask says nothing."""
    drafts: int = 0
    """How many tokens are drafted for one step of a reply."""

    def active(
        self, alphas: Alphas | None, *, exact: bool = False
    ) -> list[tuple[LoadedAdapter, float]]:
        """The adapters that act, and how strongly; one of strength 0 is not even run."""
        chosen = strengths(self.alphas, alphas, exact=exact)
        return [(one, chosen[name]) for name, one in self.adapters.items() if chosen[name]]

    def form(
        self, kind: BasePrompt | None, active: Sequence[tuple[LoadedAdapter, float]]
    ) -> BasePromptForm:
        """How the base model is asked; the adapter's form is the first one's that acts."""
        first = next(iter([*(one for one, _ in active), *self.adapters.values()]), None)
        if first is None:
            return choose_form(self.base, kind, None)
        return choose_form(self.base, kind, first.form, first.turns)

    def _marks(
        self, form: BasePromptForm, active: Sequence[tuple[LoadedAdapter, float]]
    ) -> Marks | None:
        """How thoughts are marked: by the GGUF's template, else by the first adapter that says it.

        An adapter's marks are those of answers that its delta says, in whatever form is asked.
        """
        told = marks_of(self.base.chat_template) if form.kind == "gguf" else None
        return told or next((one.thinking for one, _ in active if one.thinking), None)

    def make(self, ask: Ask) -> Request:
        """The request; UsageError and PromptTooLong where it cannot be one."""
        if not ask.sampling.max_tokens and not ask.echo:
            raise UsageError("max_tokens must be at least 1, not 0")
        active = self.active(ask.alphas, exact=ask.exact)
        messages = conversation(ask.prompt)
        made = Request(
            tokens=(),
            sampling=ask.sampling,
            drafts=self.drafts,
            top_logprobs=ask.top_logprobs,
            plain=ask.plain,
        )
        if messages is None:
            return self._continuation(made, ask, active)
        if ask.echo:
            raise UsageError("a conversation is not given back: echo takes a text or tokens")
        reserve = min(ask.sampling.max_tokens, self.n_ctx // 4)
        history = read_history(messages)
        begun = history.begun.encode("utf-8", "replace")
        deltas = [one.active(alpha, one.prompt(history.folded), begun) for one, alpha in active]
        form = replace(self.form(ask.base_prompt, active), values=ask.template_values)
        fitted = fit(self.base, form, history, context=self.n_ctx, reserve=reserve)
        marks = self._marks(form, active)
        return replace(
            made,
            tokens=fitted.tokens,
            active=tuple(deltas),
            thinking=Thinking.of(marks, fitted.prompt.text, history.begun),
            notice=_left_out(fitted.dropped),
        )

    def _continuation(
        self, made: Request, ask: Ask, active: Sequence[tuple[LoadedAdapter, float]]
    ) -> Request:
        """A reply that goes on from a text or from tokens."""
        raw = RawPrompt.of(
            self._raw_tokens(ask.prompt), self.base.vocabulary, added=self._added_in_front()
        )
        split = [(split_prompt(one, raw, echo=ask.echo), one, alpha) for one, alpha in active]
        deltas = [
            one.active(alpha, part.prompt, raw.said(part.answer, len(raw.text)))
            for part, one, alpha in split
        ]
        made = replace(made, tokens=raw.tokens, active=tuple(deltas))
        if not ask.echo:
            return made
        # Where several deltas see the answer begin in different places, the last of them counts.
        shifted = max([1, *(raw.first_token(part.answer) for part, _, _ in split)])
        before = [
            replace(delta, given=raw.said(part.answer, raw.starts[shifted]))
            for delta, (part, _, _) in zip(deltas, split, strict=True)
        ]
        text = raw.text.decode("utf-8", "replace")
        return replace(made, echo=Echo(text, shifted, tuple(before)))

    def _added_in_front(self) -> bytes:
        """The space that SentencePiece vocabularies put before a text."""
        texts = self.base.vocabulary.tokens
        spelled = b"".join(texts[token] for token in self.base.tokenize("x", bos=False))
        return spelled.partition(b"x")[0]

    def _raw_tokens(self, prompt: str | Sequence[Message] | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str):
            tokens: Sequence[int] = self.base.tokenize(prompt, special=True)
        else:
            tokens = [token for token in prompt if isinstance(token, int)]
        size = len(self.base.vocabulary)
        if not tokens:
            raise UsageError("the prompt is empty: give at least one token of text")
        if (wrong := next((token for token in tokens if not 0 <= token < size), None)) is not None:
            raise UsageError(f"token {wrong} is not in the base model's vocabulary of {size}")
        if len(tokens) >= self.n_ctx:
            raise PromptTooLong(too_long(len(tokens), self.n_ctx))
        return tokens


def conversation(prompt: str | Sequence[Message] | Sequence[int]) -> list[Message] | None:
    """The messages of a prompt that is a conversation."""
    if isinstance(prompt, str):
        return None
    messages = [one for one in prompt if not isinstance(one, int)]
    if messages and len(messages) < len(prompt):
        raise UsageError("a prompt holds messages or tokens, not both")
    return messages or None


def _left_out(turns: int) -> str:
    """The notice about so many oldest turns that the context had no room for."""
    if not turns:
        return ""
    told = f"{turns} oldest turns were" if turns > 1 else "oldest turn was"
    return f"the base model's context is full: the {told} left out"
