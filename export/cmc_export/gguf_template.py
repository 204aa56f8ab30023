"""A GGUF as template: llama.cpp serves its log-probabilities, whatever its quantisation.

Rows are decoded together, several sequences in one batch of bounded size, and only the positions
that are in the loss have logits: memory is bounded by the batch, not by the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmc_local.base.model import BaseModel
from cmc_local.base.span import Span
from cmc_local.errors import TokenizerError
from cmc_local.text.delta_tokenizer import DeltaTokenizer

TOGETHER = 16
"""Sequences that are decoded together."""
MOST_TOKENS = 512
"""Tokens decoded at once, where their logits take no more than LOGITS_BYTES."""
LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of a batch: its tokens up to the last position that is asked for."""

    tokens: list[int]
    places: list[int]
    """Positions in the loss."""
    first: int
    """Which row of the result the first of them is."""


class GgufTemplate:
    """See templates.Template; `close` it to free the model."""

    def __init__(
        self,
        path: Path,
        vocabulary: int,
        *,
        longest: int,
        threads: int | None = None,
        gpu_layers: int = -1,
    ) -> None:
        """`longest` is the longest row in tokens; `vocabulary` tokens are kept."""
        self.name = path.stem
        self._vocabulary = vocabulary
        self._most = max(1, min(MOST_TOKENS, LOGITS_BYTES // (4 * vocabulary)))
        self._base = BaseModel(
            path,
            context=longest,
            cells=max(longest, self._most),
            batch=self._most,
            sequences=TOGETHER,
            threads=threads,
            gpu_layers=gpu_layers,
        )

    def __call__(self, ids: Tensor, keep: Tensor) -> Tensor:
        """See templates.Template."""
        found = torch.empty(int(keep.sum()), self._vocabulary)
        for group in self._groups(_lines(ids, keep)):
            self._decode(group, found)
        return torch.log_softmax(found, dim=-1)

    def close(self) -> None:
        """Free the model."""
        self._base.close()

    def check_tokenizer(self, tokenizer: DeltaTokenizer, texts: Iterable[str]) -> None:
        """Raise TokenizerError unless llama.cpp gives these texts the same tokens."""
        for text in texts:
            if tokenizer.encode(text) != self._base.tokenize(text, special=False, bos=False):
                raise TokenizerError(
                    f"the tokenizer made of {self.name}.gguf does not encode {text[:60]!r} as "
                    "llama.cpp does: use the Hugging Face folder that the file was made of"
                )

    def _groups(self, lines: Iterable[_Line]) -> Iterator[list[_Line]]:
        """Lines that are decoded together; one that is longer than a batch is alone."""
        group: list[_Line] = []
        size = 0
        for line in lines:
            if group and (len(group) == TOGETHER or size + len(line.tokens) > self._most):
                yield group
                group, size = [], 0
            group.append(line)
            size += len(line.tokens)
        if group:
            yield group

    def _decode(self, group: Sequence[_Line], found: Tensor) -> None:
        for sequence in range(TOGETHER):  # all of them: they share the cells
            self._base.clear(sequence)
        for at in range(0, max(len(line.tokens) for line in group), self._most):
            spans: list[Span] = []
            mine: list[int] = []  # rows of the result, and which outputs they are
            theirs: list[int] = []
            count = 0
            for sequence, line in enumerate(group):
                part = line.tokens[at : at + self._most]
                if not part:
                    continue
                first, last = bisect_left(line.places, at), bisect_left(line.places, at + len(part))
                inside = [place - at for place in line.places[first:last]]
                outputs = range(inside[0], inside[-1] + 1) if inside else range(0)
                spans.append(Span(sequence, at, part, outputs))
                mine += range(line.first + first, line.first + last)
                theirs += [count + place - outputs.start for place in inside]
                count += len(outputs)
            self._base.decode_spans(spans)
            if count:
                logits = torch.from_numpy(self._base.outputs(count))
                found[mine] = logits[theirs, : self._vocabulary]


def _lines(ids: Tensor, keep: Tensor) -> Iterator[_Line]:
    first = 0
    for row, kept in zip(ids.tolist(), keep.tolist(), strict=True):
        places = [at for at, wanted in enumerate(kept) if wanted]
        if places:
            yield _Line(row[: places[-1] + 1], places, first)
            first += len(places)
