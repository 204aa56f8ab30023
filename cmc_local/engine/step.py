"""Sequences in flight, and the step that takes all of them further at once.

One step (DESIGN.md, "One step of the runner"):

    worker thread    align the new tokens, run the deltas,
                     all rows of an adapter together
    calling thread   one llama_decode: a token of each        add the shifts to each row,
                     reply, some prompt (`step_plan.py`)      sample it

A *slot* is a conversation's place in both models' caches and outlives its runs, so that the next
turn decodes only what is new. A *run* is one reply: what is still to decode, which steerings act
and how strongly, who chooses the next token, and perhaps who guesses the tokens after it
(`prompt_lookup.py`). Knows token ids and logits; text, prompts and stop texts are the business of
`cmc_local.model`. Belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import perf_counter

from cmc_local.engine.prompt_lookup import PromptLookup
from cmc_local.engine.runs import Base, Chooser, Run, Slot, StepTimes, Timings, Watcher
from cmc_local.engine.step_plan import Part, lay_out, share_prompt
from cmc_local.errors import UsageError
from cmc_local.settings import Overlap
from cmc_local.steer.control import add_shifts
from cmc_local.steer.steering import ActiveSteering, advance, common_prefix

__all__ = ["Base", "Chooser", "Engine", "Run", "Slot", "StepTimes", "Timings"]

FIRST_ROWS = 64
"""Rows of a prompt at once while nobody knows yet how long they take."""
LEAST_ROWS = 16
"""Rows from which on a decode says how long a prompt's rows take."""
Work = Callable[[], tuple[float, float]]
"""What the deltas are to do; the seconds that aligning and the networks took of it."""


class Engine:
    """Steps runs on one base model; owns the worker thread of the deltas."""

    def __init__(
        self,
        base: Base,
        *,
        batch: int = 512,
        overlap: Overlap = "auto",
        spare_core: bool = True,
    ) -> None:
        """`batch` bounds the tokens of one decode.

        `overlap="auto"` runs the deltas beside the base where that leaves a `spare_core` for them.
        """
        self.base = base
        self.times = StepTimes()
        """Over all steps so far."""
        self.step_seconds: float | None = None
        """How long one step may hold up whoever waits for it; None leaves prompts whole."""
        self._row_seconds: float | None = None
        self._batch = batch
        self.overlaps = spare_core if overlap == "auto" else overlap == "on"
        """Whether the deltas run while the base model decodes."""
        self._rolls_back = base.can_roll_back
        self._slots: list[Slot] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cmc-delta")
        self._last_job: Future[None] | None = None

    def begin(
        self,
        slot: Slot,
        prompt: Sequence[int],
        chooser: Chooser,
        active: Sequence[ActiveSteering] = (),
        *,
        guesser: PromptLookup | None = None,
        watcher: Watcher | None = None,
    ) -> Run:
        """A run that continues `prompt`; whatever the slot's caches share with it is kept.

        With a `guesser`, which must know the prompt, one step may choose several tokens; a
        `watcher` sees each row before and after the shift.
        """
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token of text")
        if not any(known is slot for known in self._slots):
            self._slots.append(slot)
        self.end(slot)
        kept = self._rewind(slot, prompt)
        run = Run(
            slot, chooser, tuple(active), tuple(prompt), list(prompt[kept:]), guesser, watcher
        )
        run.timings.prompt_tokens = len(prompt)
        run.timings.reused_tokens = kept
        slot.run = run
        return run

    def end(self, slot: Slot) -> None:
        """End the slot's run; the caches stay for what may continue them."""
        last, slot.run = slot.run, None
        if last is not None and last.job is not None:  # left with the deltas at work
            wait([last.job])
            slot.stale = slot.stale or last.job.exception() is not None

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
                raise UsageError("another reply took this one's place: begin it anew")
        before = perf_counter()
        try:
            parts = self._lay_out(runs)
            self._submit(parts)
            self._decode(parts)
            chosen = {id(part.run): self._finish(part) for part in parts}
        except BaseException:
            for run in runs:
                run.slot.stale, run.slot.run = True, None
            wait([run.job for run in runs if run.job is not None])
            raise
        self.times.total_seconds += perf_counter() - before
        return [chosen.get(id(run), []) for run in runs]

    def settle(self) -> None:
        """Wait until the deltas rest, so that another thread may use them."""
        if self._last_job is not None:
            wait([self._last_job])

    def close(self) -> None:
        """End the worker thread; what it is doing is finished first."""
        self._worker.shutdown(wait=True)

    # --- the parts of a step -------------------------------------------------------------------

    def _rewind(self, slot: Slot, prompt: Sequence[int]) -> int:
        """Cut the base's cache back to what it shares with the prompt; the length kept.

        The last token is always decoded again, for its logits.
        """
        if slot.stale:
            self.base.clear(slot.sequence)
            slot.cached.clear()
            for steering in slot.steerings:
                steering.stale = True
            slot.stale = False
        kept = min(common_prefix(slot.cached, prompt), len(prompt) - 1)
        if kept < len(slot.cached) and not self.base.truncate(slot.sequence, kept):
            self.base.clear(slot.sequence)
            kept = 0
        del slot.cached[kept:]
        return kept

    def _lay_out(self, runs: Sequence[Run]) -> list[Part]:
        if self._rolls_back:
            for run in runs:
                share_prompt(self.base, run, self._slots)
        # However slow the prompts are, every reply has its row.
        rows = min(sum(run.replying for run in runs) + self.most_rows(), self._batch)
        return lay_out(self.base, runs, batch=rows, guessing=self._rolls_back)

    def _submit(self, parts: Sequence[Part]) -> None:
        """Give the deltas' work to the worker thread, or do it at once."""
        told: list[Part] = []
        for part in parts:
            run = part.run
            if not run.active:
                continue
            if not run.begun:
                run.begun = True
                self._start([run], _begun(run.active))
            elif part.finishes and run.untold is not None:
                told.append(part)
        if told:
            self._start([part.run for part in told], self._told(told))

    def _told(self, parts: Sequence[Part]) -> Work:
        """The work of telling the deltas what was chosen, and what is guessed to follow."""
        texts = self.base.vocabulary.tokens
        plans = []
        for part in parts:
            run = part.run
            assert run.untold is not None
            pieces = [texts[run.untold], *(texts[token] for token in part.guesses)]
            plans += [(one.steering, pieces, run.kept) for one in run.active]
            run.untold = None

        def work() -> tuple[float, float]:
            begun = perf_counter()
            for steering, pieces, kept in plans:
                steering.plan(pieces, kept=kept)
            aligned = perf_counter() - begun
            return aligned, advance([steering for steering, _, _ in plans])

        return work

    def _start(self, runs: Sequence[Run], work: Work) -> None:
        def timed() -> None:
            begun = perf_counter()
            aligned, session = work()
            spent = perf_counter() - begun
            for times in (self.times, *(run.timings for run in runs)):
                times.delta_seconds += spent
                times.align_seconds += aligned
                times.session_seconds += session

        if not self.overlaps:
            timed()
            return
        self._last_job = self._worker.submit(timed)
        for run in runs:
            run.job = self._last_job

    def most_rows(self, row_seconds: float | None = None) -> int:
        """Rows of a prompt in one step: what `step_seconds` allow at the last prompts' pace.

        Or at a pace of `row_seconds` for each row.
        """
        if self.step_seconds is None:
            return self._batch
        pace = row_seconds or self._row_seconds
        rows = self.step_seconds / pace if pace else FIRST_ROWS
        return max(min(int(rows), self._batch), min(LEAST_ROWS, self._batch))

    def _decode(self, parts: Sequence[Part]) -> None:
        begun = perf_counter()
        self.base.decode_spans([part.span() for part in parts])
        spent = perf_counter() - begun
        if (rows := sum(part.rows for part in parts)) >= LEAST_ROWS:
            self._row_seconds = spent / rows
        for part in parts:
            if part.run.timings.generated_tokens:
                part.run.timings.decode_seconds += spent
            else:
                part.run.timings.prompt_seconds += spent
        if any(part.run.timings.generated_tokens for part in parts):
            self.times.decode_seconds += spent

    def _finish(self, part: Part) -> list[int]:
        """Book what was decoded; choose the next token, and one more for each right guess."""
        run, slot = part.run, part.run.slot
        decoded = len(slot.cached) + part.rows
        finishes = part.finishes
        slot.cached.extend(part.tokens)
        del run.pending[: len(part.tokens)]
        if not finishes:
            return []
        chosen = self._choose(part)
        if not chosen:
            slot.stale, slot.run = True, None
            return []
        slot.cached.extend(part.guesses[: len(chosen) - 1])
        run.pending.append(chosen[-1])
        run.untold, run.kept = chosen[-1], len(chosen)
        run.timings.generated_tokens += len(chosen)
        run.timings.guessed_tokens += len(chosen) - 1
        if run.guesser is not None:
            run.guesser.extend(chosen)
        if decoded > len(slot.cached):
            self._take_back(run)
        return chosen

    def _choose(self, part: Part) -> list[int]:
        run = part.run
        self._await_deltas(run)
        places = min((len(one.steering.places) for one in run.active), default=part.rows)
        first = part.first_row + len(part.tokens) - 1
        chosen: list[int] = []
        for draft, guess in enumerate([*part.guesses, None]):
            if draft == places:  # the deltas did not follow the guesses that far
                break
            mapped = perf_counter()
            if run.watcher is not None:
                run.watcher.before(self.base.logits(first + draft))
            if run.active:
                shifts = [one.shift(draft) for one in run.active]
                add_shifts(self.base.logits(first + draft), shifts)
            begun = perf_counter()
            try:
                chosen.append(run.chooser.sample(first + draft))
            except UsageError as error:  # a grammar that allows nothing here
                run.failed = error
                return []
            if run.watcher is not None:
                run.watcher.after(self.base.logits(first + draft), chosen[-1])
            ended = perf_counter()
            for times in (self.times, run.timings):
                times.map_seconds += begun - mapped
                times.sample_seconds += ended - begun
            if chosen[-1] != guess:
                break
        return chosen

    def _await_deltas(self, run: Run) -> None:
        if run.job is None:
            return
        begun = perf_counter()
        run.job.result()
        run.job = None
        spent = perf_counter() - begun
        for times in (self.times, run.timings):
            times.wait_seconds += spent

    def _take_back(self, run: Run) -> None:
        """Let the base forget guesses that were wrong, and rows that were none."""
        slot = run.slot
        if self.base.truncate(slot.sequence, len(slot.cached)):
            return
        self._decode_again(run)

    def _decode_again(self, run: Run) -> None:
        """A model that keeps its last state alone: decode the sequence again, guess no more."""
        self._rolls_back = False
        self.base.clear(run.slot.sequence)
        run.pending[:0] = run.slot.cached
        run.slot.cached.clear()


def _begun(active: Sequence[ActiveSteering]) -> Work:
    def work() -> tuple[float, float]:
        for one in active:
            one.begin()
        return 0.0, 0.0  # a prompt's time is told as a whole

    return work
