"""What a worker does with its rows, without Ray.

The model is a fake that answers "aa", or "bb" where the question ends in "b".
"""

from __future__ import annotations

import pytest

from cmc_local import Limits, Sampling, SteeredModel
from cmc_local.errors import UsageError
from fakes import NEWLINE, B, FakeBase

pa = pytest.importorskip("pyarrow", reason="Ray's data part is absent: install the extra `ray`")
pytest.importorskip("ray", reason="Ray is absent: install the extra `ray`")
from cmc_local.integrations import ray_worker  # noqa: E402


def echo(seen: tuple[int, ...]) -> tuple[float, ...]:
    """Two letters like the last one before the last newline, then the end."""
    at = max((i for i, token in enumerate(seen) if token == NEWLINE), default=0)
    if len(seen) - at > 2:
        return (1, 0, 0, 0, 0)
    return (0, 0, 1, 0, 0) if seen[at - 1] == B else (0, 1, 0, 0, 0)


def fake() -> SteeredModel:
    base = FakeBase(echo, n_ctx=32)
    return SteeredModel(base, base.sampler, limits=Limits(parallel=3))


GREEDY = ray_worker.ReplyOptions(Sampling(temperature=0))


def test_a_bad_row_costs_no_other_its_answer() -> None:
    rows = [
        {"prompt": "b"},
        {"prompt": "a" * 40},
        {"prompt": "a"},
        {"prompt": " "},
        {"prompt": "b"},
    ]
    found = ray_worker.Answering(fake, GREEDY)(pa.Table.from_pylist(rows)).to_pylist()
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row["response"] for row in found] == ["bb", None, "aa", None, "bb"]
    assert [bool(row["error"]) for row in found] == [False, True, False, True, False]


def test_columns_are_kept_and_nulls_are_no_fields() -> None:
    table = pa.Table.from_pylist(
        [
            {"id": 5, "prompt": "b", "question": None, "response": 3, "messages": None},
            {"id": 4, "prompt": None, "question": None, "response": None,
             "messages": [{"role": "user", "content": "a", "name": None}]},
        ]
    )  # fmt: skip
    found = ray_worker.Answering(fake, GREEDY)(table)
    assert found.column_names == ["id", "prompt", "question", "messages", *ray_worker.ANSWER.names]
    assert found["id"].to_pylist() == [5, 4]
    assert found["response"].to_pylist() == ["bb", "aa"]


def test_an_answer_that_cannot_be_scored_says_why() -> None:
    rows = [
        {"question": "b", "answer": "b"},
        {"question": "b", "answer": ""},
        {"question": "b", "answer": "a" * 40},
        {"question": "b"},
    ]
    found = ray_worker.Scoring(fake, GREEDY)(pa.Table.from_pylist(rows)).to_pylist()
    assert [row["tokens"] for row in found] == [1, 0, 0, 0]
    assert found[0]["nats"] > 0 and found[1]["error"] is None
    assert "context" in found[2]["error"] and "expected" in found[3]["error"]


def test_a_setting_that_suits_no_row_ends_the_job() -> None:
    worker = ray_worker.Answering(fake, ray_worker.ReplyOptions(alphas={"nobody": 1.0}))
    with pytest.raises(UsageError, match=r"machine .* 'nobody'"):
        worker(pa.Table.from_pylist([{"prompt": "b"}]))
