"""Batch generation and evaluation over many machines, with Ray Data.

    with connected("auto"):
        answers = generate(rows, "/models/base.gguf", ["/models/my-adapter"], sampling=greedy)
        answers.write_json("/results")
        print(nll(held_out, "/models/base.gguf", ["/models/my-adapter"]))

    rows --> blocks --> one of the workers, each with a SteeredModel (ray_worker.py) --> rows

`rows` are those of the JSONL files that `cmc-local generate` and `cmc-local eval nll` read: a list
of dicts, of which one without an "id" gets its number, or a Ray Dataset with such columns. What
comes back is in no order, but for the rows of one block; in a Ray Client `streamed` reads it. A
worker that dies is started again, and its block with it, up to `RESTARTS` times. Every machine
needs cmc-local, and the models under the same paths (`ray_files.py`). Imports Ray.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from cmc_local.errors import DataError, UsageError
from cmc_local.evaluate.nll import nll_means
from cmc_local.integrations import ray_files
from cmc_local.integrations.ray_cluster import (
    RESTARTS,
    Workers,
    connected,
    fitted,
    import_ray,
    one_line_errors,
)
from cmc_local.integrations.ray_worker import (
    SCORE,
    Answering,
    Load,
    ReplyOptions,
    Row,
    Scoring,
    Worker,
)
from cmc_local.model.steered import AdapterLike, Alphas, SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.text.base_prompt import BasePrompt

ray = import_ray()

__all__ = [
    "Workers",
    "connected",
    "generate",
    "nll",
    "one_line_errors",
    "score",
    "spread",
    "streamed",
]

Rows = Any
"""A sequence of dicts, or a ray.data.Dataset."""
ROUNDS: Final = 4
"""Rows of a block for each reply that a worker writes at once: few slots idle at a block's end."""
MOST_BLOCKS: Final = 2000
"""More would burden the driver."""


def generate(
    rows: Rows,
    gguf: str | Path,
    adapters: Sequence[AdapterLike] = (),
    *,
    sampling: Sampling | None = None,
    alphas: Alphas | None = None,
    base_prompt: BasePrompt | None = None,
    workers: Workers | None = None,
    **load: Any,
) -> Any:
    """The rows as a Dataset with "response", "finish_reason", "tokens", "seconds" and "notices".

    A row that cannot be answered has a null response and the reason under "error". `load` are
    further arguments of `SteeredModel.load`. The same seed gives what `generate_many` gives, up to
    the rounding of batches. Work begins when the Dataset is read.
    """
    options = ReplyOptions(sampling or Sampling(), alphas, base_prompt)
    return _steered(Answering, rows, gguf, adapters, options, workers, load)


def score(
    rows: Rows,
    gguf: str | Path,
    adapters: Sequence[AdapterLike] = (),
    *,
    alphas: Alphas | None = None,
    base_prompt: BasePrompt | None = None,
    workers: Workers | None = None,
    **load: Any,
) -> Any:
    """The rows as a Dataset with what their answers cost: "nats", "tokens", "characters", "greedy".

    The last is the number of tokens that were the likeliest. A row that cannot be scored has zeros
    and the reason under "error"; an empty answer has zeros.
    """
    options = ReplyOptions(alphas=alphas, base_prompt=base_prompt)
    return _steered(Scoring, rows, gguf, adapters, options, workers, load)


def nll(
    rows: Rows, gguf: str | Path, adapters: Sequence[AdapterLike] = (), **how: Any
) -> dict[str, float]:
    """Means over all answers as in `evaluate.nll.nll_means`; `how` as for `score`.

    DataError where a row cannot be scored: means without it would compare models on other data.
    """
    with one_line_errors():
        scored = streamed(partial(score, rows, gguf, adapters, **how))
        values = [{name: row[name] for name in SCORE.names} for row in scored]
    wrong = [one["error"] for one in values if one["error"] is not None]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(values)} rows cannot be scored: {wrong[0]}")
    if not any(one["tokens"] for one in values):
        raise DataError("no row has an answer to score: give questions with answers")
    return nll_means(values)


def spread(
    kind: type[Worker],
    rows: Rows,
    load: Load,
    options: ReplyOptions,
    *,
    workers: Workers,
    parallel: int,
) -> Any:
    """The rows as a Dataset with what workers of this kind add to them.

    `workers` are fitted to the cluster; `parallel` is how many rows one of them does at once.
    """
    if ray.util.client.ray.is_connected():
        raise UsageError("Ray Data does not work in a Ray Client: read it through `streamed`")
    assert workers.count is not None
    size: int | None = ROUNDS * parallel
    if isinstance(rows, ray.data.Dataset):
        _leave_a_core(rows, workers)
    else:
        numbered = [{"id": number, **row} for number, row in enumerate(rows)]
        if not numbered:
            raise DataError("there are no rows: give at least one")
        each = min(ROUNDS * parallel, math.ceil(len(numbered) / workers.count))
        blocks = min(math.ceil(len(numbered) / each), MOST_BLOCKS)
        rows, size = ray.data.from_items(numbered, override_num_blocks=blocks), None
    with warnings.catch_warnings():
        # By default Ray Data tries a block that kills its workers for ever, and it warns that the
        # only way to bound that ends with Ray 2.64.
        warnings.simplefilter("ignore", DeprecationWarning)
        return rows.map_batches(
            kind,
            fn_constructor_kwargs={"load": load, "options": options},
            batch_size=size,
            batch_format="pyarrow",
            # One block at work and one waiting: a slow worker holds on to no more than that.
            compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=2),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )


def streamed(make: Callable[[], Any]) -> Iterator[Row]:
    """The rows of the Dataset that `make` makes, as they come.

    Datasets do not work in a Ray Client (ray://): there it is made and read by an actor.
    """
    if not ray.util.client.ray.is_connected():
        yield from make().iter_rows()
        return
    reader = ray.remote(num_cpus=0)(_Reader).remote(make)
    while rows := ray.get(reader.next.remote()):
        yield from rows


class _Reader:
    """Reads a Dataset where it works."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._rows: Iterator[Row] | None = None

    def next(self) -> list[Row]:
        """A few more rows; none at the end."""
        if self._rows is None:
            self._rows = iter(self._make().iter_rows())
        return list(islice(self._rows, ROUNDS))


def _leave_a_core(rows: Any, workers: Workers) -> None:
    """Refuse workers that take every core: what reads the rows would wait for one for ever."""
    assert workers.count is not None and workers.cpus is not None
    cores = ray.cluster_resources().get("CPU", 0)
    if workers.count * workers.cpus > cores - 1 and not isinstance(
        rows, ray.data.dataset.MaterializedDataset
    ):
        raise UsageError(
            f"{workers.count} workers of {workers.cpus} cores leave none of {cores:g} to read the "
            "rows: give fewer, or rows.materialize()"
        )


def _steered(
    kind: type[Worker],
    rows: Rows,
    gguf: str | Path,
    adapters: Sequence[AdapterLike],
    options: ReplyOptions,
    workers: Workers | None,
    load: Mapping[str, Any],
) -> Any:
    workers = fitted(workers or Workers())
    how = {"threads": workers.cpus, **load}
    folders = [
        (Path(one[0]).absolute(), one[1]) if isinstance(one, tuple) else Path(one).absolute()
        for one in adapters
    ]
    path = Path(gguf).absolute()
    known = ray_files.marks([path], [one[0] if isinstance(one, tuple) else one for one in folders])
    make = partial(ray_files.same, known, partial(SteeredModel.load, path, folders, **how))
    limits: Limits = how.get("limits") or Limits()
    return spread(kind, rows, make, options, workers=workers, parallel=limits.parallel)
