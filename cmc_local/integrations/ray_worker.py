"""What runs on the machines of a Ray cluster: a steered model in an actor, tables in and out.

    {"question": "Who?"} -> {"question": "Who?", "response": "Helen.", ..., "error": None}

`Answering` and `Scoring` are what `Dataset.map_batches` makes an actor of: the model is loaded
once, each call takes a batch. A row that cannot be answered says why under "error" and the others
are answered all the same; a model that cannot be loaded, or a setting that suits no row, ends the
job with a line that names the machine. Knows nothing of how rows and workers are spread (`ray.py`).
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from cmc_local.errors import CmcError, UsageError
from cmc_local.evaluate.nll import answer_scores
from cmc_local.evaluate.reply_measures import gained
from cmc_local.model.steered import Alphas, SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message
from cmc_local.text.rows import Conversation, conversation, question

Row = dict[str, Any]
Load = Callable[[], SteeredModel]
"""Loads the model on the machine where it is called; it is pickled on its way there."""

ANSWER: Final = pa.schema(
    [
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("notices", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)
"""What a row gains when it is answered."""
SCORE: Final = pa.schema(
    [
        ("nats", pa.float64()),
        ("tokens", pa.int64()),
        ("characters", pa.int64()),
        ("greedy", pa.int64()),
        ("error", pa.string()),
    ]
)
"""What a row gains when its answer is scored."""
NOTHING: Final = {"nats": 0.0, "tokens": 0, "characters": 0, "greedy": 0}
"""The score of an empty answer, and of one that cannot be scored."""


@dataclass(frozen=True)
class ReplyOptions:
    """How the model is asked, the same for every row."""

    sampling: Sampling = field(default_factory=Sampling)
    alphas: Alphas | None = None
    base_prompt: BasePrompt | None = None


class Worker(ABC):
    """A loaded model; called with a table of rows it gives the table with more columns."""

    gains: pa.Schema

    def __init__(self, load: Load, options: ReplyOptions) -> None:
        self.options = options
        # Ray would try a constructor that fails again, and tell of it on the driver's stdout.
        self._failure: CmcError | None = None
        try:
            self.model = load()
            self.check()
        except CmcError as error:
            self._failure = type(error)(
                f"on machine {_machine()}: {error} (each machine needs the model and its adapters "
                "under the same paths)"
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table, each row with what it gains; a column of the same name is replaced."""
        if self._failure is not None:
            raise self._failure
        rows = [_without_nulls(row) for row in table.to_pylist()]
        try:
            columns = pa.Table.from_pylist(self.work(rows), self.gains)
        except CmcError as error:
            raise type(error)(f"on machine {_machine()}: {error}") from None
        kept = [name for name in table.column_names if name not in self.gains.names]
        table = table.select(kept)
        for name in self.gains.names:
            table = table.append_column(name, columns[name])
        return table

    @abstractmethod
    def check(self) -> None:
        """Raises what a setting that suits no row at all is refused with."""

    @abstractmethod
    def work(self, rows: Sequence[Row]) -> list[Row]:
        """What each row gains."""


class Answering(Worker):
    """Answers rows as `cmc-local generate` reads them."""

    gains = ANSWER

    def check(self) -> None:
        short = replace(self.options.sampling, max_tokens=1)
        self._replies([[{"role": "user", "content": "?"}]], short).__next__()

    def work(self, rows: Sequence[Row]) -> list[Row]:
        found: dict[int, Row] = {}
        asked: dict[int, list[Message]] = {}
        for i, row in enumerate(rows):
            try:
                asked[i] = question(row)
            except UsageError as error:
                found[i] = _unanswered(error)
        while left := [i for i in asked if i not in found]:
            found.update(self._answered({i: asked[i] for i in left}))
        return [found[i] for i in range(len(rows))]

    def _answered(self, asked: dict[int, list[Message]]) -> Iterator[tuple[int, Row]]:
        """Answers until all are there, or until a prompt is refused, which ends those in flight."""
        numbers: list[int] = []

        def prompts() -> Iterator[list[Message]]:
            for number, messages in asked.items():
                numbers.append(number)
                yield messages

        try:
            for turn, done in self._replies(prompts(), self.options.sampling):
                yield numbers[turn], {**gained(done), "notices": list(done.notices)}
        except UsageError as error:  # of the prompt that was taken last
            yield numbers[-1], _unanswered(error)

    def _replies(self, prompts: Any, sampling: Sampling) -> Iterator[tuple[int, Any]]:
        how = self.options
        return self.model.generate_many(
            prompts, sampling, alphas=how.alphas, base_prompt=how.base_prompt
        )


class Scoring(Worker):
    """Scores the answers of rows as `cmc-local eval nll` reads them."""

    gains = SCORE

    def check(self) -> None:
        self._score([{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}])

    def work(self, rows: Sequence[Row]) -> list[Row]:
        return [self._scored(row) for row in rows]

    def _scored(self, row: Row) -> Row:
        try:
            talk = conversation(row)
            return self._score(talk) if talk[-1]["content"].strip() else dict(NOTHING)
        except (UsageError, ValueError) as error:
            return {**NOTHING, "error": str(error)}

    def _score(self, talk: Conversation) -> Row:
        how = self.options
        (score,) = answer_scores(self.model, [talk], alphas=how.alphas, base_prompt=how.base_prompt)
        return score


def _unanswered(error: CmcError) -> Row:
    return {
        "response": None,
        "finish_reason": "error",
        "tokens": 0,
        "seconds": 0.0,
        "notices": [],
        "error": str(error),
    }


def _without_nulls(value: Any) -> Any:
    """The value without what a table fills in where other rows have a field and this one has not.

    >>> _without_nulls({"question": "Who?", "system": None})
    {'question': 'Who?'}
    """
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _machine() -> str:
    """This machine, as its owner and Ray know it."""
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
