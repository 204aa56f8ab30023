"""What a caller may choose, as frozen dataclasses that check themselves.

Knows nothing of models: numbers and names only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cmc_local.errors import UsageError

Unmapped = Literal["neutral", "zero"]
Fallback = Literal["first-piece", "none"]
MidToken = Literal["join", "off"]
Overlap = Literal["auto", "on", "off"]
Speculate = int | Literal["off", "on", "auto"]
"""Drafts a step, 0 for none; the words are those of older versions."""
OLD_DRAFTS = 4
"""What the old words `on` and `auto` mean."""
MOST_DRAFTS = 64
FORMS = ("json_schema", "regex", "lark", "grammar")
"""Settings of `Sampling` that give a reply its form."""
MOST_PARALLEL = 256
"""Sequences that llama.cpp holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn; names and defaults are llama.cpp's."""

    temperature: float = 0.8
    """0 is greedy: the most likely token, always."""
    top_k: int = 40
    """0 keeps the whole vocabulary."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    """How many of the last tokens the three penalties look at; -1 for the whole context."""
    seed: int | None = None
    """None draws a new one for each request."""
    stop: tuple[str, ...] = ()
    max_tokens: int = 512
    """0 where a prompt alone is read (`Ask.echo`)."""
    json_schema: str | Mapping[str, Any] | type[Any] | None = None
    """A JSON schema: JSON text, a dict or a Pydantic model; kept as JSON text."""
    regex: str | None = None
    """What the whole reply matches, in the syntax of Rust's `regex`."""
    lark: str | None = None
    """A Lark grammar, as llguidance reads it."""
    grammar: str | None = None
    """GBNF, llama.cpp's grammars. Of the four forms one at most is given."""
    steer_thinking: bool = True
    """Whether the shift also acts on thoughts before the answer, where the model marks them."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Base tokens and what is added to their logits, the shift aside; -inf forbids one."""

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0.0)
        _at_least("top_k", self.top_k, 0)
        _at_least("max_tokens", self.max_tokens, 0)
        _at_least("penalty_last_n", self.penalty_last_n, -1)
        for name in ("top_p", "min_p", "typical_p"):
            _between(name, getattr(self, name), 0.0, 1.0)
        if self.repeat_penalty <= 0.0:
            raise UsageError(f"repeat_penalty must be above 0, not {self.repeat_penalty}")
        if self.seed is not None:
            _between("seed", self.seed, 0, 2**32 - 2)
        object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        forms = [name for name in FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise UsageError(f"{' and '.join(forms)} exclude each other: give one of them")
        for token, bias in self.logit_bias:
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UsageError(f"logit_bias: {bias} for token {token}: give a number or -inf")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty: leave it out")

    @property
    def has_form(self) -> bool:
        """Whether the reply is to have a form."""
        return any(getattr(self, name) is not None for name in FORMS)

    def without_form(self) -> Sampling:
        """The same for a reply of any form."""
        return replace(self, json_schema=None, regex=None, lark=None, grammar=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """How a delta's shift is carried over to the base model."""

    unmapped: Unmapped = "neutral"
    """Base tokens without counterpart: `neutral` keeps their total probability, `zero` adds 0."""
    fallback: Fallback = "first-piece"
    """The token map's second stage; `none` is the paper's rule alone."""
    mid_token: MidToken = "join"
    """Whether a base token within what the delta says as one token is offered that one's shift."""

    def __post_init__(self) -> None:
        _one_of("unmapped", self.unmapped, ("neutral", "zero"))
        _one_of("fallback", self.fallback, ("first-piece", "none"))
        _one_of("mid_token", self.mid_token, ("join", "off"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes that bound a loaded model."""

    context: int = 0
    """The base model's context in tokens; 0 takes what it was trained with, at most 8,192."""
    batch: int = 512
    """Tokens that one `llama_decode` takes."""
    parallel: int = 1
    """Replies that are written at once; each has a context of its own."""

    def __post_init__(self) -> None:
        _at_least("context", self.context, 0)
        _at_least("batch", self.batch, 1)
        _between("parallel", self.parallel, 1, MOST_PARALLEL)
        if self.batch < self.parallel:
            raise UsageError(
                f"a batch of {self.batch} tokens has no row for each of {self.parallel} replies: "
                "give a larger batch"
            )


def drafts(speculate: Speculate) -> int:
    """How many tokens are drafted for one step; UsageError for what is neither number nor word."""
    if speculate in ("off", "on", "auto"):
        return 0 if speculate == "off" else OLD_DRAFTS
    if not isinstance(speculate, int) or not 0 <= speculate <= MOST_DRAFTS:
        raise UsageError(
            f"speculate must be a number of drafts from 0 (off) to {MOST_DRAFTS}, not {speculate!r}"
        )
    return speculate


def _schema_text(schema: str | Mapping[str, Any] | type[Any] | None) -> str | None:
    if schema is None or isinstance(schema, str):
        return schema
    if hasattr(schema, "model_json_schema"):  # a Pydantic model
        schema = schema.model_json_schema()
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise UsageError(f"json_schema cannot be written as JSON ({error})") from None


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise UsageError(f"{name} must be at least {low}, not {value}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} must be between {low} and {high}, not {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
