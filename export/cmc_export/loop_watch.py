"""What looks on while a loop runs: the log, the clock, Ctrl-C, and the best weights so far."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from cmc_export.processes import agreed
from cmc_local.errors import TrainingError


class LogWriter(TrainerCallback):
    """One JSON object a line into `path`; a bar on a terminal, plain lines elsewhere (stderr)."""

    def __init__(
        self, path: Path, steps: int, tokens: Callable[[], int], *, writes: bool = True
    ) -> None:
        """`writes` is False in all but one of several processes: these only look at the loss."""
        self._path, self._steps, self._tokens, self._writes = path, steps, tokens, writes
        self._last = (0.0, 0)  # seconds, tokens
        self._start, self._step = 0.0, 0
        self._bar: Any = None
        self._records: list[dict[str, float]] = []

    def __enter__(self) -> LogWriter:
        if self._writes and sys.stderr.isatty():
            self._bar = tqdm(total=self._steps, unit="step", file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; drop the lines that a resumed run will write again."""
        self._start = time.perf_counter()
        self._last = (self._start, 0)
        kept = [r for r in _read_records(self._path) if r["step"] <= state.global_step]
        self._records = kept
        if self._writes:
            self._path.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar; the last step is always logged."""
        self._step = state.global_step
        if state.global_step == state.max_steps:
            control.should_log = True
        if self._bar is not None:
            self._bar.update(1)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line; a loss that is no number ends the run."""
        values = logs or {}
        if "loss" not in values and "eval_loss" not in values:
            return
        record = {"step": state.global_step, **self._speed(values)}
        record |= {
            name: round(float(values[name]), 6)
            for name in ("loss", "eval_loss", "grad_norm")
            if name in values
        }
        if "learning_rate" in values:
            record["learning_rate"] = float(values["learning_rate"])
        self._write(record)
        for name in ("loss", "eval_loss"):
            if not math.isfinite(record.get(name, 0.0)):
                raise TrainingError(
                    f"the loss is {record[name]} at step {state.global_step}: the run diverged; "
                    "lower --learning-rate, or lengthen --warmup"
                )

    def summary(self, *, best: bool) -> dict[str, Any]:
        """Figures of the run; seconds and tokens are those since it was last started.

        The held-out loss is that of the weights that stay: the `best`, or the last.
        """
        losses = [r["loss"] for r in self._records if "loss" in r]
        held_out = [r["eval_loss"] for r in self._records if "eval_loss" in r]
        seconds = time.perf_counter() - self._start
        return {
            "steps": self._step,
            "tokens": self._tokens(),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(self._tokens() / max(seconds, 1e-9)),
            "loss": losses[-1] if losses else None,
            "held_out_loss": (min(held_out) if best else held_out[-1]) if held_out else None,
        }

    def _speed(self, values: dict[str, float]) -> dict[str, float]:
        if "loss" not in values:
            return {}
        now, seen = time.perf_counter(), self._tokens()
        before, tokens = self._last
        self._last = (now, seen)
        return {
            "seconds": round(now - self._start, 2),
            "tokens_per_second": round((seen - tokens) / max(now - before, 1e-9)),
        }

    def _write(self, record: dict[str, float]) -> None:
        self._records.append(record)
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._bar is not None:
            shown = {k: v for k, v in record.items() if k in ("loss", "eval_loss")}
            self._bar.set_postfix(shown)
        else:
            print(_line(record, self._steps), file=sys.stderr, flush=True)


def _line(record: dict[str, float], steps: int) -> str:
    if "eval_loss" in record:
        return f"step {record['step']:.0f}/{steps}  held-out loss {record['eval_loss']:.4f}"
    return (
        f"step {record['step']:.0f}/{steps}  loss {record['loss']:.4f}  "
        f"{record['tokens_per_second']:,.0f} tokens/s  {record['seconds']:.0f} s"
    )


def _read_records(path: Path) -> list[dict[str, float]]:
    """The whole lines of an earlier log; a last line cut off by a kill is dropped."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class Clock(TrainerCallback):
    """A checkpoint every so many minutes: short runs write none, long ones lose little."""

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60.0
        self._last = time.monotonic()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint when it is time (never at the last step: the output follows)."""
        due = agreed(time.monotonic() - self._last >= self._seconds)
        if due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the minutes from here."""
        self._last = time.monotonic()


class Interrupt(TrainerCallback):
    """The first Ctrl-C ends the run after its step, with a checkpoint; a second one at once."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        try:
            self._before = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # not the main thread: Ctrl-C does not come here
            self._before = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop."""
        self.pressed = agreed(self.pressed)
        if self.pressed:
            control.should_save = True
            control.should_training_stop = True


class BestKeeper(TrainerCallback):
    """Keeps the weights with the lowest held-out loss, and ends the run when it has long passed.

    Its memory is the Trainer's own log, which a checkpoint holds: nothing else is to be resumed.
    """

    def __init__(self, folder: Path, patience: int, *, writes: bool = True) -> None:
        """`writes` is False in all but one of several processes."""
        self._folder, self._patience, self._writes = folder, patience, writes
        self.step = 0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember what an earlier part of the run has seen."""
        self._looks(state)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep these weights if none were better; count the looks since the best."""
        if not self._patience:
            return
        looks = self._looks(state)
        if self.step == state.global_step and self._writes:
            self._keep(kwargs["model"])
        if sum(step > self.step for _, step in looks) >= self._patience:
            control.should_training_stop = True

    def _looks(self, state: TrainerState) -> list[tuple[float, int]]:
        """(held-out loss, step) of every look so far; sets `step` to the best one's."""
        looks = [(r["eval_loss"], r["step"]) for r in state.log_history if "eval_loss" in r]
        _, self.step = min(looks, default=(0.0, 0))
        return looks

    def restore(self, model: PreTrainedModel) -> None:
        """Load the best weights into the model."""
        if (self._folder / "model.safetensors").is_file():
            load_model(model, self._folder / "model.safetensors")

    def _keep(self, model: PreTrainedModel) -> None:
        staging = self._folder.with_name("best.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_model(model, str(staging / "model.safetensors"))
        shutil.rmtree(self._folder, ignore_errors=True)
        staging.rename(self._folder)
