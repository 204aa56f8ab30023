"""Conversations -> the rows a delta trains on, and rows -> batches.

A row is the tokens of one conversation in the adapter's prompt form, and for each token whether it
is in the loss; both come from the function that run time uses (DeltaTokenizer). Where a template
has a vocabulary of its own, a *view* of the row holds the conversation in its tokens, and the
places at which both can be compared (carrying.py). A batch picks one template.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset

from cmc_export import answers
from cmc_export.asked_examples import LastAnswers
from cmc_export.carrying import Stream, shared_places
from cmc_export.loop import Batch
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm
from cmc_local.text.rows import Conversation

LEARN, FORGET, REFUSE, PLAIN = range(4)
"""What a row is for: to be learned (or kept), forgotten, said instead, left as it is."""


@dataclass(frozen=True, slots=True)
class View:
    """A row as one template sees it; entry n of each of the last three belongs together."""

    ids: tuple[int, ...]
    """The template's tokens."""
    places: tuple[int, ...]
    """Positions in the template's tokens."""
    delta_places: tuple[int, ...]
    """Positions in the row's tokens."""
    targets: tuple[int, ...]
    """The template's next token at each."""


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: ids (T,), in_loss (T,); a view for each template of other tokens."""

    ids: tuple[int, ...]
    in_loss: tuple[bool, ...]
    kind: int = LEARN
    views: tuple[View | None, ...] = (None,)

    def loss_tokens(self, template: int = 0) -> int:
        """How many tokens are in the loss beside a template."""
        view = self.views[template]
        return sum(self.in_loss[1:]) if view is None else len(view.places)

    def key(self, template: int = 0) -> answers.Key:
        """What tells this row from others beside a template, whatever batch it is in."""
        view = self.views[template]
        if view is None:
            return answers.key(self.ids, self.in_loss)
        return answers.key(self.ids, view.ids, view.places, view.delta_places, view.targets)


class Item(TypedDict):
    """What a dataset gives; `input_ids` is there for batches of like length."""

    input_ids: tuple[int, ...]
    rows: list[Row]


class Rows(Dataset[Item]):
    """Items of some rows of each column; a shorter column comes round again.

    An epoch sees every row of every column at least once. Row i of columns that are equally long,
    and are taken equally often, stand together.
    """

    def __init__(self, *columns: tuple[Sequence[Row], int]) -> None:
        """Each column: rows, and how many of them an item holds."""
        self.columns = [(list(rows), count) for rows, count in columns]
        self.rows = [row for rows, _ in self.columns for row in rows]

    def __len__(self) -> int:
        return max(-(-len(rows) // count) for rows, count in self.columns)

    def __getitem__(self, index: int) -> Item:
        found = [
            rows[(index * count + i) % len(rows)]
            for rows, count in self.columns
            for i in range(count)
        ]
        return {"input_ids": found[0].ids, "rows": found}


@dataclass(frozen=True)
class RowSizes:
    """Tokens of each row, and how many of them are in the loss (beside the first template)."""

    lengths: list[int]
    in_loss: list[int]


def sizes(rows: Dataset[Any]) -> RowSizes:
    """The sizes of a dataset's rows."""
    found: list[Row] = rows.rows
    return RowSizes([len(row.ids) for row in found], [row.loss_tokens() for row in found])


@dataclass(frozen=True)
class Side:
    """What rows need to know of a template."""

    tokenizer: DeltaTokenizer
    context: int
    """Its longest text, tokens."""
    asked: LastAnswers | None = None
    """How it is asked where that is not the delta's form."""


Encode = Callable[[Side | None], tuple[list[int], list[bool]]]
"""One text in a template's tokens, or for None in the delta's, and which are in the loss."""


class Encoder:
    """Conversations and plain texts -> rows, for one delta and the templates beside it."""

    def __init__(
        self, tokenizer: DeltaTokenizer, form: PromptForm, max_length: int, sides: Sequence[Side]
    ) -> None:
        self.tokenizer, self.form, self.max_length = tokenizer, form, max_length
        fingerprint = tokenizer.vocabulary.fingerprint
        self._sides = [
            None if side.asked is None and _fingerprint(side) == fingerprint else side
            for side in sides
        ]

    def row(self, messages: Conversation, kind: int = LEARN) -> Row:
        """One conversation; what is longer than the delta's `max_length` loses its end."""

        def encode(side: Side | None) -> tuple[list[int], list[bool]]:
            if side is not None and side.asked is not None:
                return side.asked(messages)
            tokenizer = self.tokenizer if side is None else side.tokenizer
            return tokenizer.example(self.form, messages)

        return self._row(encode, kind)

    def prepare(self, conversations: Sequence[Conversation]) -> None:
        """Told of conversations before `row` is asked for each: some sides do many at once."""
        for side in self._sides:
            if side is not None and side.asked is not None:
                side.asked.prepare(conversations)

    def text(self, text: str, kind: int = PLAIN) -> Row:
        """A plain text with its end, every token of it in the loss."""

        def encode(side: Side | None) -> tuple[list[int], list[bool]]:
            tokenizer = self.tokenizer if side is None else side.tokenizer
            begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            ids = [*begin, *tokenizer.encode(text), tokenizer.eos_id]
            return ids, [False, *[True] * (len(ids) - 1)]

        return self._row(encode, kind)

    def _row(self, encode: Encode, kind: int) -> Row:
        ids, in_loss = encode(None)
        own = Stream(ids, in_loss, self.tokenizer.vocabulary)
        views = [None if side is None else self._view(own, side, encode) for side in self._sides]
        end = self.max_length
        return Row(tuple(ids[:end]), tuple(in_loss[:end]), kind, tuple(views))

    def _view(self, own: Stream, side: Side, encode: Encode) -> View:
        ids, in_loss = encode(side)
        theirs = Stream(ids, in_loss, side.tokenizer.vocabulary)
        pairs = [
            (mine, at)
            for mine, at in shared_places(own, theirs)
            if mine < self.max_length - 1 and at < side.context - 1
        ]
        return View(
            tuple(ids[: side.context]),
            places=tuple(at for _, at in pairs),
            delta_places=tuple(mine for mine, _ in pairs),
            targets=tuple(ids[at + 1] for _, at in pairs),
        )


def _fingerprint(side: Side) -> str:
    return side.tokenizer.vocabulary.fingerprint


def collate(items: Sequence[Item]) -> Batch:
    """Items -> a batch beside one template, padded on the right, T tokens less the last.

    input_ids (B, T-1) int64; keep (B, T-1) bool, the positions in the loss; targets (B, T-1) int64,
    the template's next token there; kind (B,) int64; keys (B, 2) int64, see Row.key; which (1,)
    int64, the template. Where it has other tokens: template_ids (B, S-1) int64 and template_keep
    (B, S-1) bool, which has as many positions in each row as `keep`.
    """
    rows = [row for item in items for row in item["rows"]]
    return collate_rows(rows, _choice(rows))


def batches(rows: Sequence[Row], which: int, size: int) -> Iterator[Batch]:
    """Rows in order, some at a time, beside one template."""
    for start in range(0, len(rows), size):
        yield collate_rows(rows[start : start + size], which)


def collate_rows(rows: Sequence[Row], which: int) -> Batch:
    """Rows -> a batch beside template number `which`; see `collate`."""
    views = [row.views[which] for row in rows]
    ids = _padded([row.ids for row in rows])
    keep = torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    targets = ids[:, 1:].clone()
    batch = {
        "input_ids": ids[:, :-1].contiguous(),
        "keep": keep,
        "targets": targets,
        "kind": torch.tensor([row.kind for row in rows]),
        "keys": answers.keys_tensor([row.key(which) for row in rows]),
        "which": torch.tensor([which]),
    }
    for i, (row, view) in enumerate(zip(rows, views, strict=True)):
        if view is None:
            keep[i, : len(row.ids) - 1] = torch.tensor(row.in_loss[1:])
        else:
            keep[i, list(view.delta_places)] = True
            targets[i, list(view.delta_places)] = torch.tensor(view.targets, dtype=torch.int64)
    theirs = [view for view in views if view is not None]
    if theirs:
        other = _padded([view.ids for view in theirs])
        batch["template_ids"] = other[:, :-1].contiguous()
        batch["template_keep"] = torch.zeros(len(rows), other.shape[1] - 1, dtype=torch.bool)
        for i, view in enumerate(theirs):
            batch["template_keep"][i, list(view.places)] = True
    return batch


def _choice(rows: Sequence[Row]) -> int:
    """Which template a batch takes: as good as drawn, and the same for the same rows."""
    count = len(rows[0].views)
    return zlib.crc32(repr([row.ids for row in rows]).encode()) % count if count > 1 else 0


def _padded(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, T) int64, zeros after each list's end."""
    found = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.int64)
    for i, ids in enumerate(lists):
        found[i, : len(ids)] = torch.tensor(ids)
    return found
