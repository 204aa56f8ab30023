"""Slots, the runs in them, and what one step gives to each run.

A *slot* is a conversation's place in the base model's caches, a *run* the reply being written
there, a *share* what a run gets of one decode:

    replies 0 and 1, prompt 2 of 100 tokens  ->  1 row, 1 row, BESIDE rows of the prompt

Replies come first. A prompt is decoded in chunks beside them, so that it does not hold them up;
where there are none it takes the whole batch. Where two prompts begin alike the second one waits
until the first has decoded the beginning, and then copies it. A reply that is alone may have
drafts. Decides, and decodes nothing; `engine/step.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.engine.delta_thread import Deltas
from cmc_local.engine.logprobs import LogprobRecorder
from cmc_local.engine.timings import Timings
from cmc_local.errors import UsageError
from cmc_local.steer.steering import WORTH_COPYING
from cmc_local.text.alignment import common_prefix
from cmc_local.text.vocabulary import Role, Vocabulary

BESIDE = 32
"""Prompt tokens decoded in one step while replies are being written, which wait for them."""


class Base(Protocol):
    """What the engine asks of a base model; `BaseModel` is one, tests have a fake."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def can_roll_back(self) -> bool: ...
    def decode_spans(self, spans: Sequence[Span]) -> None: ...
    def logits(self, i: int = -1) -> NDArray[np.float32]: ...
    def truncate(self, sequence: int, length: int) -> bool: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def clear(self, sequence: int) -> None: ...


class Chooser(Protocol):
    """Chooses the next token from the base model's logits, the shifts already added."""

    def sample(self, i: int = -1) -> int: ...


class Drafter(Protocol):
    """Drafts the next tokens of one reply; `PromptLookup` is one."""

    def draft(self, most: int) -> Sequence[int]: ...

    def extend(self, tokens: Sequence[int]) -> None:
        """The reply goes on with these."""


@dataclass(eq=False)
class Slot:
    """A sequence of the base model, and what its cache holds."""

    sequence: int
    cached: list[int] = field(default_factory=list)
    """The tokens that the base model's cache holds."""
    stale: bool = False
    """After an error nobody knows what the cache holds: the next run starts anew."""
    run: Run | None = None
    """The run that owns the caches now."""


@dataclass(eq=False)
class Run:
    """One reply under way, as tokens."""

    slot: Slot
    chooser: Chooser
    deltas: Deltas
    prompt: tuple[int, ...]
    pending: list[int]
    """Tokens to decode next: the prompt, later the one token chosen last."""
    drafter: Drafter | None = None
    """What drafts its next tokens."""
    recorder: LogprobRecorder | None = None
    failed: UsageError | None = None
    """Why no token can be chosen any more, which ends this run alone."""
    timings: Timings = field(default_factory=Timings)

    @property
    def replying(self) -> bool:
        """Whether the prompt is behind."""
        return self.timings.generated_tokens > 0 and len(self.pending) == 1


@dataclass(eq=False)
class Share:
    """What one run gets of a step."""

    run: Run
    tokens: list[int]
    """Its pending tokens, or the first of them."""
    drafts: list[int] = field(default_factory=list)
    first_row: int = 0
    """The batch's row of its first token."""

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.tokens) + len(self.drafts)

    @property
    def finishes(self) -> bool:
        """Whether the run's next token can be chosen after this step."""
        return len(self.tokens) == len(self.run.pending)

    def span(self) -> Span:
        """The share as `decode_spans` takes it; logits for the last pending token and drafts."""
        last = len(self.tokens) - 1
        outputs = range(last, self.rows) if self.finishes else range(0)
        slot = self.run.slot
        return Span(slot.sequence, len(slot.cached), [*self.tokens, *self.drafts], outputs)


def plan_step(base: Base, runs: Sequence[Run], *, batch: int, drafting: bool) -> list[Share]:
    """The shares of a step, at most `batch` rows; a run that has to wait has none."""
    shares = [Share(run, list(run.pending)) for run in runs if run.replying][:batch]
    prompts = [run for run in runs if not run.replying and not _waits(run, runs)]
    if len(shares) == 1 and not prompts and drafting:
        _add_drafts(base, shares[0], batch)
    left = min(batch - len(shares), BESIDE) if shares else batch
    for run in prompts:
        if left > 0:
            shares.append(Share(run, run.pending[:left]))
            left -= len(shares[-1].tokens)
    row = 0
    for share in shares:
        share.first_row = row
        row += share.rows
    return shares


def _add_drafts(base: Base, share: Share, batch: int) -> None:
    """Drafts, where context and batch have room; what ends a reply is never drafted."""
    if share.run.drafter is None:
        return
    room = min(base.n_ctx - len(share.run.slot.cached) - 1, batch - 1)
    roles = base.vocabulary.roles
    for token in share.run.drafter.draft(room):
        if roles[token] not in (Role.NORMAL, Role.BYTE):
            return
        share.drafts.append(token)


def _waits(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a run before this one in the step is decoding what both prompts begin with."""
    for other in runs:
        if other is run:
            return False
        if other.replying:
            continue
        shared = min(common_prefix(other.prompt, run.prompt), len(run.prompt) - 1)
        if shared - max(len(run.slot.cached), len(other.slot.cached)) >= WORTH_COPYING:
            return True
    return False


def share_prompt(base: Base, run: Run, slots: Sequence[Slot]) -> None:
    """Copy the beginning of a run's prompt from the sequence that holds most of it."""
    own = run.slot.cached
    if run.replying or len(own) + len(run.pending) != len(run.prompt):
        return
    best, best_length = None, len(own)
    for other in slots:
        if other is run.slot or other.stale or other.sequence == run.slot.sequence:
            continue
        length = min(common_prefix(other.cached, run.prompt), len(run.prompt) - 1)
        if length > best_length:
            best, best_length = other, length
    if best is None or best_length - len(own) < WORTH_COPYING:
        return
    base.copy(best.sequence, run.slot.sequence, best_length)
    own[:] = run.prompt[:best_length]
    run.pending[:] = run.prompt[best_length:]
    run.timings.reused_tokens = best_length
