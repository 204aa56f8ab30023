"""What one step decodes: a row for each reply, drafts of a reply that is alone, and some prompt.

    replies 0 and 1, prompt 2 of 100 tokens  ->  1 row, 1 row, BESIDE rows of the prompt

Replies come first. A prompt is decoded in chunks beside them, so that it does not hold them up;
where there are none it takes the whole batch. A prompt waits while another run decodes a beginning
that they share, and takes it over then. Decides, and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cmc_local.base.span import Span
from cmc_local.engine.runs import Base, Run, Slot
from cmc_local.steer.steering import common_prefix
from cmc_local.text.vocabulary import Role

BESIDE = 32
"""Prompt tokens decoded in one step while replies are being written, which wait for them."""
WORTH_SHARING = 16
"""Tokens that another sequence must have more in common with a prompt than the own one."""


@dataclass(eq=False)
class Part:
    """One run's share of a step."""

    run: Run
    tokens: list[int]
    """Its pending tokens, or the first of them."""
    guesses: list[int] = field(default_factory=list)
    first_row: int = 0

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.tokens) + len(self.guesses)

    @property
    def finishes(self) -> bool:
        """Whether the run's next token can be chosen after this step."""
        return len(self.tokens) == len(self.run.pending)

    def span(self) -> Span:
        """The part as `decode_spans` takes it; logits for the last pending token and guesses."""
        last = len(self.tokens) - 1
        outputs = range(last, last + 1 + len(self.guesses)) if self.finishes else range(0)
        tokens = [*self.tokens, *self.guesses]
        return Span(self.run.slot.sequence, len(self.run.slot.cached), tokens, outputs)


def lay_out(base: Base, runs: Sequence[Run], *, batch: int, guessing: bool) -> list[Part]:
    """The parts of a step, at most `batch` rows; a run that has to wait has none."""
    parts = [Part(run, list(run.pending)) for run in runs if run.replying][:batch]
    prompts = [run for run in runs if not run.replying and not _waits(run, runs)]
    if len(parts) == 1 and not prompts and guessing:
        _guess(base, parts[0], batch)
    left = min(batch - len(parts), BESIDE) if parts else batch
    for run in prompts:
        if left > 0:
            parts.append(Part(run, run.pending[:left]))
            left -= len(parts[-1].tokens)
    row = 0
    for part in parts:
        part.first_row = row
        row += part.rows
    return parts


def _guess(base: Base, part: Part, batch: int) -> None:
    """Drafts for a reply that is alone, where context and batch have room for them."""
    if part.run.guesser is not None:
        room = min(base.n_ctx - len(part.run.slot.cached) - 1, batch - 1)
        part.guesses = _normal(base, part.run.guesser.draft(room))


def _normal(base: Base, tokens: Sequence[int]) -> list[int]:
    """The tokens before the first that has no text: what ends a reply is never guessed."""
    roles = base.vocabulary.roles
    plain = (Role.NORMAL, Role.BYTE)
    end = next((i for i, token in enumerate(tokens) if roles[token] not in plain), len(tokens))
    return list(tokens[:end])


def _waits(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a run before this one in the step is decoding what both prompts begin with."""
    for other in runs:
        if other is run:
            return False
        if other.replying:
            continue
        shared = min(common_prefix(other.prompt, run.prompt), len(run.prompt) - 1)
        if shared - max(len(run.slot.cached), len(other.slot.cached)) >= WORTH_SHARING:
            return True
    return False


def share_prompt(base: Base, run: Run, slots: Sequence[Slot]) -> None:
    """Take over the beginning of a run's prompt from the sequence that holds most of it."""
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
    if best is None or best_length - len(own) < WORTH_SHARING:
        return
    base.copy(best.sequence, run.slot.sequence, best_length)
    own[:] = run.prompt[:best_length]
    run.pending[:] = run.prompt[best_length:]
    run.timings.reused_tokens = best_length
