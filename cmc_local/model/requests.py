"""What is asked of a steered model, and what becomes of it: `Ask` -> `Request`.

    conversation --> text/base_prompt.py -> base tokens     each acting adapter -> delta prompt
    raw text, tokens --> raw_prompts.py -> base tokens, and where in them the answer begins

Nothing is decoded here, so whoever asks may do it in a thread of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cmc_local.engine.scoring import Alphas
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.batching import Acting, Echo, Request
from cmc_local.model.raw_prompts import RawPrompt, tell
from cmc_local.settings import Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.base_prompt import (
    Asking,
    BasePrompt,
    TextModel,
    choose_asking,
    fit,
    too_long,
)
from cmc_local.text.prompts import Message


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
    top_logprobs: int | None = None
    """Alternatives that each token's details name; None: no details."""
    plain: bool = False
    """Whether details also say what the base model alone would say."""
    echo: bool = False
    """Whether a raw prompt comes back first."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request, and what was done to the prompt."""

    request: Request
    dropped: int = 0
    """Oldest turns that the context had no room for."""

    @property
    def notice(self) -> str:
        """A line for the reader; "" where nothing was dropped."""
        if not self.dropped:
            return ""
        turns = f"{self.dropped} oldest turns were" if self.dropped > 1 else "oldest turn was"
        return f"the base model's context is full: the {turns} left out"


@dataclass(frozen=True, eq=False)
class Asked:
    """The models that asks are put to."""

    base: TextModel
    n_ctx: int
    adapters: Mapping[str, LoadedAdapter]
    alphas: Mapping[str, float]
    """Their strengths where an ask says nothing."""
    drafts: int = 0
    """How many tokens are drafted for one step of a reply."""

    def strengths(self, alphas: Alphas | None, *, exact: bool = False) -> dict[str, float]:
        """The strengths in force with `alphas` over the adapters' own, or 0 if `exact`; checked."""
        if alphas is None:
            return dict(self.alphas)
        if not isinstance(alphas, Mapping):
            alphas = dict.fromkeys(self.adapters, alphas)
        for name, alpha in alphas.items():
            if name not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                raise UsageError(f"no adapter {name!r} is loaded: there are {known}")
            if not math.isfinite(alpha):
                raise UsageError(f"the alpha of {name} must be a finite number, not {alpha}")
        return {**(dict.fromkeys(self.alphas, 0.0) if exact else self.alphas), **alphas}

    def acting(self, alphas: Alphas | None) -> list[tuple[LoadedAdapter, float]]:
        """The adapters that act, and how strongly; one of strength 0 is not even run."""
        chosen = self.strengths(alphas)
        return [(one, chosen[name]) for name, one in self.adapters.items() if chosen[name]]

    def asking(self, kind: BasePrompt | None = None, alphas: Alphas | None = None) -> Asking:
        """How the base model is asked; the adapter's form is the first one's that acts."""
        acting = [one for one, _ in self.acting(alphas)] or list(self.adapters.values())
        if not acting:
            return choose_asking(self.base, kind, None)
        return choose_asking(self.base, kind, acting[0].form, acting[0].turns)

    def prepare(self, ask: Ask) -> Prepared:
        """The request; UsageError and PromptTooLong where it cannot be one."""
        if not ask.sampling.max_tokens and not ask.echo:
            raise UsageError("max_tokens must be at least 1, not 0")
        ask = replace(ask, alphas=self.strengths(ask.alphas, exact=ask.exact))
        messages = conversation(ask.prompt)
        return self._reply(ask, messages) if messages is not None else self._continuation(ask)

    def _reply(self, ask: Ask, messages: Sequence[Message]) -> Prepared:
        if ask.echo:
            raise UsageError("a conversation is not given back: echo takes a text or tokens")
        acting = [
            Acting(adapter, alpha, adapter.prompt(messages))
            for adapter, alpha in self.acting(ask.alphas)
        ]
        reserve = min(ask.sampling.max_tokens, self.n_ctx // 4)
        asking = self.asking(ask.base_prompt, ask.alphas)
        fitted = fit(self.base, asking, messages, context=self.n_ctx, reserve=reserve)
        return Prepared(self._request(ask, fitted.tokens, acting), fitted.dropped)

    def _continuation(self, ask: Ask) -> Prepared:
        tokens = self._raw_tokens(ask.prompt)
        raw = RawPrompt.of(tokens, self.base.vocabulary, added=self._added_in_front())
        told = [
            (adapter, alpha, tell(adapter, raw, echo=ask.echo))
            for adapter, alpha in self.acting(ask.alphas)
        ]
        # Where several deltas see the answer begin in different places, the last of them counts.
        shifted = max((raw.first_token(one.offset) for _, _, one in told), default=1)
        shifted = max(shifted, 1)
        acting = [
            Acting(
                adapter,
                alpha,
                one.prompt,
                given=raw.said(one.offset, len(raw.text)),
                given_before_echo=raw.said(one.offset, raw.starts[shifted]),
            )
            for adapter, alpha, one in told
        ]
        echo = Echo(shifted, raw.text.decode("utf-8", "replace")) if ask.echo else None
        return Prepared(self._request(ask, raw.tokens, acting, echo))

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

    def _request(
        self, ask: Ask, tokens: Sequence[int], acting: Sequence[Acting], echo: Echo | None = None
    ) -> Request:
        return Request(
            tokens,
            tuple(acting),
            ask.sampling,
            self.drafts,
            top_logprobs=ask.top_logprobs,
            plain=ask.plain,
            echo=echo,
        )


def conversation(prompt: str | Sequence[Message] | Sequence[int]) -> list[Message] | None:
    """The messages of a prompt that is a conversation."""
    if isinstance(prompt, str):
        return None
    messages = [one for one in prompt if not isinstance(one, int)]
    if messages and len(messages) < len(prompt):
        raise UsageError("a prompt holds messages or tokens, not both")
    return messages or None
