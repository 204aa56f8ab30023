"""The step: all runs go on by a token, base model and deltas side by side.

    1. plan      what each run gets of the batch (`slots.py`)
    2. deltas    the new tokens aligned, the networks run, in their thread (`delta_thread.py`)
    3. base      one llama_decode of all rows, meanwhile
    4. choose    the shifts added to each row, a token sampled from it

A *slot* is a conversation's place in the base model's cache and outlives its runs, so that the next
turn decodes only what is new. A *run* is one reply: what is still to decode, which adapters act and
how strongly, who chooses the next token, and perhaps what drafts the tokens after it
(`prompt_lookup.py`). Knows token ids and logits; text, prompts and stop texts are the business of
`cmc_local.model`. Belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from cmc_local.engine.delta_thread import Deltas, DeltaThread
from cmc_local.engine.logprobs import LogprobRecorder
from cmc_local.engine.slots import Base, Chooser, Drafter, Run, Share, Slot, plan_step, share_prompt
from cmc_local.engine.timings import StepTimes, Timings
from cmc_local.errors import UsageError
from cmc_local.settings import Overlap
from cmc_local.steer.control import add_shifts
from cmc_local.steer.steering import ActiveAdapter
from cmc_local.text.alignment import common_prefix

FIRST_ROWS = 64
"""Rows of a prompt at once while nobody knows yet how long they take."""
LEAST_ROWS = 16
"""Rows from which on a decode says how long a prompt's rows take."""


class Engine:
    """Steps runs on one base model; owns the thread of the deltas."""

    def __init__(
        self, base: Base, *, batch: int = 512, overlap: Overlap = "auto", spare_core: bool = True
    ) -> None:
        """`batch` bounds the tokens of one decode.

        `overlap="auto"` runs the deltas beside the base where that leaves a `spare_core` for them.
        """
        self.base = base
        self.times = StepTimes()
        """Over all steps so far."""
        self.overlaps = spare_core if overlap == "auto" else overlap == "on"
        """Whether the deltas run while the base model decodes."""
        self.step_seconds: float | None = None
        """How long one step may hold up whoever waits for it; None leaves prompts whole."""
        self._row_seconds: float | None = None
        self._batch = batch
        self._rolls_back = base.can_roll_back
        self._slots: list[Slot] = []
        self._deltas = DeltaThread(self.times, overlaps=self.overlaps)

    def begin(
        self,
        slot: Slot,
        prompt: Sequence[int],
        chooser: Chooser,
        active: Sequence[ActiveAdapter] = (),
        *,
        drafter: Drafter | None = None,
        recorder: LogprobRecorder | None = None,
    ) -> Run:
        """A run that continues `prompt`; whatever the slot's caches share with it is kept.

        With a `drafter`, which must know the prompt, one step may choose several tokens; a
        `recorder` sees each row before and after the shift.
        """
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token of text")
        if not any(known is slot for known in self._slots):
            self._slots.append(slot)
        self.end(slot)
        kept = self._rewind(slot, prompt)
        timings = Timings(prompt_tokens=len(prompt), reused_tokens=kept)
        slot.run = Run(
            slot,
            chooser,
            Deltas(tuple(active), slot.sequence, timings),
            tuple(prompt),
            list(prompt[kept:]),
            drafter,
            recorder,
            timings=timings,
        )
        return slot.run

    def end(self, slot: Slot) -> None:
        """End the slot's run; the caches stay for what may continue them."""
        last, slot.run = slot.run, None
        if last is not None:
            self._deltas.leave(last.deltas)

    def has_room(self, run: Run) -> bool:
        """Whether the base model's context takes the pending tokens."""
        return len(run.slot.cached) + len(run.pending) <= self.base.n_ctx

    def step(self, runs: Sequence[Run]) -> list[list[int]]:
        """The tokens that each run chose; none where part of its prompt is still to decode.

        An error in either model ends all the runs with that error: no token is ever chosen
        from logits that miss a shift. A chooser's UsageError ends its own run (`Run.failed`).
        """
        for run in runs:
            if run.slot.run is not run:
                raise UsageError(
                    "this run is over: an error ended it, or another one has its slot; begin anew"
                )
        before, texts = perf_counter(), self.base.vocabulary.tokens
        try:
            shares = self._plan(runs)
            self._deltas.start([(s.run.deltas, [texts[t] for t in s.drafts]) for s in shares])
            self._decode(shares)
            chosen = {id(share.run): self._finish(share) for share in shares}
        except BaseException:
            for run in runs:
                run.slot.stale = True
                self.end(run.slot)
            raise
        self.times.total_seconds += perf_counter() - before
        return [chosen.get(id(run), []) for run in runs]

    def settle(self) -> None:
        """Wait until the deltas rest, so that another thread may use them."""
        self._deltas.settle()

    def close(self) -> None:
        """End the thread of the deltas; what it is doing is finished first."""
        self._deltas.close()

    def most_rows(self, row_seconds: float | None = None) -> int:
        """Rows of a prompt in one step: what `step_seconds` allow at the last prompts' pace.

        Or at a pace of `row_seconds` for each row.
        """
        if self.step_seconds is None:
            return self._batch
        pace = row_seconds or self._row_seconds
        rows = self.step_seconds / pace if pace else FIRST_ROWS
        return max(min(int(rows), self._batch), min(LEAST_ROWS, self._batch))

    # --- the parts of a step -------------------------------------------------------------------

    def _rewind(self, slot: Slot, prompt: Sequence[int]) -> int:
        """Cut the base's cache back to what it shares with the prompt; the length kept.

        The last token is always decoded again, for its logits.
        """
        if slot.stale:
            self.base.clear(slot.sequence)
            slot.cached.clear()
            slot.stale = False
        kept = min(common_prefix(slot.cached, prompt), len(prompt) - 1)
        if kept < len(slot.cached) and not self.base.truncate(slot.sequence, kept):
            self.base.clear(slot.sequence)
            kept = 0
        del slot.cached[kept:]
        return kept

    def _plan(self, runs: Sequence[Run]) -> list[Share]:
        if self._rolls_back:
            for run in runs:
                share_prompt(self.base, run, self._slots)
        # However slow the prompts are, every reply has its row.
        rows = min(sum(run.replying for run in runs) + self.most_rows(), self._batch)
        return plan_step(self.base, runs, batch=rows, drafting=self._rolls_back)

    def _decode(self, shares: Sequence[Share]) -> None:
        begun = perf_counter()
        self.base.decode_spans([share.span() for share in shares])
        spent = perf_counter() - begun
        if (rows := sum(share.rows for share in shares)) >= LEAST_ROWS:
            self._row_seconds = spent / rows
        for share in shares:
            if share.run.timings.generated_tokens:
                share.run.timings.decode_seconds += spent
            else:
                share.run.timings.prompt_seconds += spent
        if any(share.run.timings.generated_tokens for share in shares):
            self.times.decode_seconds += spent

    def _finish(self, share: Share) -> list[int]:
        """Book what was decoded; choose the next token, and one more for each right draft."""
        run, slot = share.run, share.run.slot
        decoded = len(slot.cached) + share.rows
        finishes = share.finishes
        slot.cached.extend(share.tokens)
        del run.pending[: len(share.tokens)]
        if not finishes:
            return []
        chosen = self._choose(share)
        if not chosen:
            slot.stale = True
            self.end(slot)
            return []
        slot.cached.extend(share.drafts[: len(chosen) - 1])
        run.pending.append(chosen[-1])
        run.deltas.chosen(self.base.vocabulary.tokens[chosen[-1]], len(chosen))
        run.timings.generated_tokens += len(chosen)
        run.timings.guessed_tokens += len(chosen) - 1
        if run.drafter is not None:
            run.drafter.extend(chosen)
        if decoded > len(slot.cached):
            self._take_back_drafts(run)
        return chosen

    def _choose(self, share: Share) -> list[int]:
        """A token for the last pending place and each draft, until one differs from its draft."""
        run = share.run
        self._deltas.wait(run.deltas)
        first = share.first_row + len(share.tokens) - 1
        chosen: list[int] = []
        for draft in range(run.deltas.reach(1 + len(share.drafts))):
            row = first + draft
            mapped = perf_counter()
            if run.recorder is not None:
                run.recorder.before(self.base.logits(row))
            if run.deltas.active:
                add_shifts(self.base.logits(row), run.deltas.shifts(draft))
            begun = perf_counter()
            try:
                chosen.append(run.chooser.sample(row))
            except UsageError as error:  # a grammar that allows nothing here
                run.failed = error
                return []
            if run.recorder is not None:
                run.recorder.after(self.base.logits(row), chosen[-1])
            ended = perf_counter()
            for times in (self.times, run.timings):
                times.map_seconds += begun - mapped
                times.sample_seconds += ended - begun
            if chosen[-1] != next(iter(share.drafts[draft : draft + 1]), None):
                break
        return chosen

    def _take_back_drafts(self, run: Run) -> None:
        """Let the base forget drafts that were wrong.

        A model that cannot (it keeps its last state alone) decodes the sequence again, and gets no
        more drafts.
        """
        slot = run.slot
        if self.base.truncate(slot.sequence, len(slot.cached)):
            return
        self._rolls_back = False
        self.base.clear(slot.sequence)
        run.pending[:0] = slot.cached
        slot.cached.clear()
