"""Ask a template once about every row, and write its answers down: `cmc-local record`, and `train`.

    rows --> batches of bounded size --> Asked (llama.cpp or PyTorch) --> Sums --> answers.Writer

Can be stopped at any moment, by a kill too: rows that were written stay, and the next run goes on
with the others.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cmc_export import answers
from cmc_export.beside import Asked
from cmc_export.examples import Row, collate_rows
from cmc_local.errors import InputError, TrainingError

LOGITS_BYTES = 256 * 2**20
"""Of the log-probabilities that are in memory at once."""
MOST_ROWS = 16
LINE_SECONDS = 10.0
"""Between two lines of progress where no terminal shows a bar."""


def record(
    asked: Asked, rows: Sequence[Row], which: int, writer: answers.Writer
) -> answers.Answers:
    """Write the answers of template number `which` to all rows; the finished table.

    Raises TrainingError on Ctrl-C or where the disk is full; what is written stays.
    """
    known = writer.known()
    fresh = {row.key(which): row for row in rows if row.loss_tokens(which)}
    left = [row for key, row in fresh.items() if key not in known]
    left.sort(key=lambda row: len(row.ids), reverse=True)  # like lengths: little padding
    batches = list(_batches(left, which, asked.template_tokens))
    tokens = sum(map(_length, left, [which] * len(left)))
    try:
        with _Progress(asked.name, tokens) as progress:
            for n, some in enumerate(batches):
                if n + 1 < len(batches):
                    asked.prepare(collate_rows(batches[n + 1], which))
                sums = asked(collate_rows(some, which))
                counts = [row.loss_tokens(which) for row in some]
                writer.add([row.key(which) for row in some], counts, sums)
                progress.add(sum(_length(row, which) for row in some))
    except KeyboardInterrupt:
        raise TrainingError(
            f"stopped after {writer.rows:,} of {len(fresh):,} rows, which are in {writer.folder}: "
            "go on with the same command and --resume"
        ) from None
    writer.finish()
    return answers.Answers(writer.folder, check=False)


def size(made: answers.Made, rows: Sequence[Row], which: int) -> int:
    """Bytes that the table of these rows takes."""
    fresh = {row.key(which): row.loss_tokens(which) for row in rows}
    return sum(fresh.values()) * (made.stride() + 8) + 32 * len(fresh)


def check_room(folder: Path, needed: int) -> None:
    """Raise InputError where the disk has no room for so many bytes more."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"the template's answers take {needed / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB "
            "free: make room, choose another --output, or ask the template anew in each epoch "
            "(train --answers-gb 0)"
        )


def _length(row: Row, which: int) -> int:
    """Tokens that the template reads."""
    view = row.views[which]
    return len(row.ids if view is None else view.ids)


def _batches(rows: Sequence[Row], which: int, tokens: int) -> Iterator[list[Row]]:
    """Rows that are asked about together; one with very many positions is alone."""
    most = max(1, LOGITS_BYTES // (4 * tokens))
    batch: list[Row] = []
    positions = 0
    for row in rows:
        count = row.loss_tokens(which)
        if batch and (len(batch) == MOST_ROWS or positions + count > most):
            yield batch
            batch, positions = [], 0
        batch.append(row)
        positions += count
    if batch:
        yield batch


@dataclass
class _Progress:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""

    name: str
    tokens: int
    done: int = 0

    def __enter__(self) -> _Progress:
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            label = f"answers of {self.name}"
            self._bar = tqdm(total=self.tokens, unit="token", desc=label, file=sys.stderr)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            self._say(time.monotonic())

    def add(self, tokens: int) -> None:
        """So many tokens more were read."""
        self.done += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(tokens)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            self._say(now)

    def _say(self, now: float) -> None:
        pace = self.done / max(now - self._began, 1e-9)
        text = f"answers of {self.name}: {self.done:,} of {self.tokens:,} tokens, {pace:,.0f}/s"
        print(text, file=sys.stderr, flush=True)
