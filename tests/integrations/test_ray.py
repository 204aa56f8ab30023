"""Batches over a Ray cluster: what SteeredModel says, with a worker killed, a file cut or absent.

The cluster is one of two cores in this process's children. What a worker does with its rows is
tested without Ray, on a fake that answers "aa", or "bb" where the question ends in "b".
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cmc_local import Limits, Sampling, SteeredModel
from cmc_local.commands import main
from cmc_local.errors import (
    CmcError,
    DataError,
    DeviceError,
    GGUFError,
    MissingExtra,
    UsageError,
)
from cmc_local.evaluate.nll import answer_scores, nll_means
from fakes import NEWLINE, B, FakeBase

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes one into the home folder
pa = pytest.importorskip("pyarrow", reason="Ray's data part is absent: install the extra `ray`")
ray = pytest.importorskip("ray", reason="Ray is absent: install the extra `ray`")
from cmc_local.integrations import ray as over_ray  # noqa: E402
from cmc_local.integrations import ray_cluster, ray_worker  # noqa: E402
from cmc_local.integrations.ray_cluster import Workers  # noqa: E402

TWO = Workers(count=2, cpus=1)
LONG = Sampling(temperature=0.8, seed=7, max_tokens=120)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray_cluster.import_ray()
    with contextlib.suppress(KeyError):
        del os.environ["RAY_ADDRESS"]
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
    )
    with ray_cluster._quiet(ray.data.DataContext.get_current()):
        yield
    ray.shutdown()


@pytest.fixture(scope="module")
def questions(bundled_models: Path) -> list[Row]:
    lines = (bundled_models / "world" / "questions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:12]]


@pytest.fixture(scope="module")
def model(bundled_models: Path) -> Iterator[SteeredModel]:
    with SteeredModel.load(*steered(bundled_models), threads=1) as made:
        yield made


def steered(models: Path) -> tuple[Path, list[tuple[Path, float]]]:
    return models / "template.gguf", [(models / "instruct", 0.9)]


# --- on a cluster ----------------------------------------------------------------------------


def test_answers_are_the_models_though_a_worker_is_killed(
    cluster: None, model: SteeredModel, bundled_models: Path, questions: list[Row]
) -> None:
    rows = [{"id": f"q{i}", **row} for i, row in enumerate(questions)]
    bad = [{"id": "long", "prompt": "x " * 9000}, {"id": "shape", "text": "?"}]
    # Of strength 0 the adapter lets the answers run on to the limit: there is time to kill.
    data = over_ray.generate(
        [*bad, *rows], *steered(bundled_models), sampling=LONG, alphas=0.0, workers=TWO
    )
    found: dict[str, Row] = {}
    for row in data.iter_rows():
        if not found:
            os.kill(workers_of_this_process()[0], signal.SIGKILL)
        assert row["id"] not in found
        found[row["id"]] = row
    many = model.generate_many([row["question"] for row in rows], LONG, alphas=0.0)
    expected = {rows[i]["id"]: done for i, done in many}
    assert found.keys() == {*expected, "long", "shape"}
    for name, done in expected.items():
        row = found[name]
        assert (row["response"], row["tokens"]) == (done.text, len(done.tokens))
        assert (row["finish_reason"], row["error"]) == (done.finish_reason, None)
    for name, reason in (("long", "tokens, but the base model's context"), ("shape", "expected")):
        assert reason in found[name]["error"] and found[name]["response"] is None
    assert {row["id"]: row["fact"] for row in rows} == {
        name: found[name]["fact"] for name in expected
    }


def workers_of_this_process() -> list[int]:
    """The processes of actors that answer: children of this one's raylet."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (place / "cmdline").read_bytes()
            parent = parent_of(place)
            if b"MapWorker(MapBatches(Answering))" in name and parent_of(parent) == own():
                found.append(int(place.name))
    return found


def parent_of(place: Path) -> Path:
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    return Path("/proc") / fields[1]


def own() -> Path:
    return Path("/proc") / str(os.getpid())


def test_likelihoods_are_the_models(
    cluster: None, model: SteeredModel, bundled_models: Path, questions: list[Row]
) -> None:
    talks = [
        [{"role": "user", "content": row["question"]},
         {"role": "assistant", "content": row["answer"]}]
        for row in questions
    ]  # fmt: skip
    expected = nll_means(list(answer_scores(model, talks, alphas=None, base_prompt=None)))
    found = over_ray.nll(questions, *steered(bundled_models), workers=TWO)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["nll"] < 1


def test_an_absent_file_is_one_line_that_names_the_machine(
    cluster: None, tmp_path: Path, questions: list[Row]
) -> None:
    with pytest.raises(GGUFError) as told:
        over_ray.nll(questions, tmp_path / "absent.gguf", workers=Workers(count=1, cpus=1))
    line = str(told.value)
    assert line.startswith(f"on machine {socket.gethostname()} (") and "\n" not in line
    assert f"{tmp_path / 'absent.gguf'} does not exist" in line and "same paths" in line


@pytest.fixture
def run(cluster: None, bundled_models: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the cluster that is there."""
    monkeypatch.setattr(over_ray, "connected", lambda _: contextlib.nullcontext())

    def invoke(*words: str) -> Any:
        gguf, ((adapter, alpha),) = steered(bundled_models)
        model = ("--gguf", str(gguf), "--adapter", f"{adapter}:{alpha}", "--threads", "1")
        return CliRunner().invoke(main, ("generate", *model, "-n", "16", *words))

    return invoke


def test_the_command_goes_on_behind_a_cut_off_line(
    run: Any, tmp_path: Path, questions: list[Row]
) -> None:
    source, whole, target = (tmp_path / name for name in ("in.jsonl", "whole.jsonl", "out.jsonl"))
    bad = {"prompt": "x " * 9000}
    source.write_text("".join(json.dumps(row) + "\n" for row in questions[:6]), "utf-8")
    assert run("-i", str(source), "-o", str(whole)).exit_code == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    with source.open("a", encoding="utf-8") as file:
        file.write(json.dumps(bad) + "\n" + json.dumps(questions[6]) + "\n")
    over = ("--ray", "local", "--workers", "2", "-p", "2")
    done = run("-i", str(source), "-o", str(target), "--resume", *over)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "1 of 8 rows have no answer, the first is row 7: the prompt has" in done.stderr
    found = target.read_bytes().splitlines(keepends=True)
    assert found[:2] == lines[:2]
    assert without_seconds(found[:6]) == without_seconds(lines)
    refused, last = map(json.loads, found[6:])
    assert refused["response"] is None and refused["finish_reason"] == "error"
    assert last["question"] == questions[6]["question"] and last["response"] and "error" not in last
    again = run("-i", str(source), "-o", str(target), "--resume", *over)  # nothing is left to do
    assert again.exit_code == 1 and target.read_bytes() == b"".join(found)


def test_the_commands_answers_go_to_stdout(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "b"}\n', "utf-8")

    def talkative(*_: Any, **__: Any) -> Any:
        print("(raylet) noise")
        made = [{"id": i, "response": str(i), "finish_reason": "stop", "tokens": 1, "seconds": 0.0,
                 "notices": [], "error": None} for i in (1, 0)]  # fmt: skip
        return type("Dataset", (), {"iter_rows": lambda _: iter(made)})()

    monkeypatch.setattr(over_ray, "spread", talkative)
    done = run("-i", str(source), "--ray", "local")
    assert done.stderr == "(raylet) noise\n"
    assert [json.loads(line)["response"] for line in done.stdout.splitlines()] == ["0", "1"]


def without_seconds(lines: Sequence[bytes]) -> list[Row]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_workers_that_leave_no_core_to_read_the_rows_are_refused(
    cluster: None, bundled_models: Path
) -> None:
    rows = ray.data.range(4)
    with pytest.raises(UsageError, match="2 workers of 1 cores leave none of 2"):
        over_ray.generate(rows, *steered(bundled_models), workers=TWO)
    over_ray.generate(rows, *steered(bundled_models))  # one worker of one core by default


# --- a worker without a cluster --------------------------------------------------------------


def echo(seen: tuple[int, ...]) -> tuple[float, ...]:
    """Two letters like the last one before the last newline, then the end."""
    at = max((i for i, token in enumerate(seen) if token == NEWLINE), default=0)
    if len(seen) - at > 2:
        return (1, 0, 0, 0, 0)
    return (0, 0, 1, 0, 0) if seen[at - 1] == B else (0, 1, 0, 0, 0)


def fake() -> SteeredModel:
    base = FakeBase(echo, n_ctx=32)
    return SteeredModel(base, base.sampler, limits=Limits(parallel=3))


GREEDY = ray_worker.Asking(Sampling(temperature=0))


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
    worker = ray_worker.Answering(fake, ray_worker.Asking(alphas={"nobody": 1.0}))
    with pytest.raises(UsageError, match=r"on machine .* no adapter 'nobody' is loaded"):
        worker(pa.Table.from_pylist([{"prompt": "b"}]))


# --- ways to a cluster -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "count", "cpus"),
    [
        (Workers(), 3, 3),  # one for each machine, a core of the smallest left over
        (Workers(count=7), 7, 1),  # three on a machine: 3 // 3
        (Workers(cpus=8), 2, 8),
        (Workers(gpus=1), 1, 15),
    ],
)
def test_workers_suit_the_machines(workers: Workers, count: int, cpus: int) -> None:
    machines = [{"CPU": 4.0}, {"CPU": 8.0}, {"CPU": 16.0, "GPU": 1.0}, {"memory": 1.0}]
    found = workers.on(machines)
    assert (found.count, found.cpus, found.gpus) == (count, cpus, workers.gpus)


def test_workers_that_no_machine_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="has 9 cores"):
        Workers(cpus=9).on([{"CPU": 8.0}])
    with pytest.raises(UsageError, match="has 1 cores and 2 GPUs"):
        Workers(gpus=2).on([{"CPU": 8.0, "GPU": 1.0}])
    with pytest.raises(UsageError, match="count must be at least 1, not 0"):
        Workers(count=0)
    with pytest.raises(UsageError, match="gpus must be at least 0, not nan"):
        Workers(gpus=float("nan"))


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("address", ["there", "there:x", ":1", "ray://there", "a:99999", ""])
def test_an_address_that_is_none_is_refused(unconnected: None, address: str) -> None:
    with (
        pytest.raises(UsageError, match="give auto, local, host:port or ray://host:port"),
        ray_cluster.connected(address),
    ):
        pass


def test_a_place_where_no_ray_runs_is_named_at_once(unconnected: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with (
            pytest.raises(DeviceError, match=f"no Ray is running at {address}"),
            ray_cluster.connected(address),
        ):
            pass


def test_work_without_a_cluster_says_how_to_connect(unconnected: None) -> None:
    with pytest.raises(UsageError, match="not connected to Ray"):
        ray_cluster.fitted(Workers())


@pytest.mark.parametrize(
    ("trace", "kind", "message"),
    [
        ("File x\ncmc_local.errors.DataError: a: b\n\nmore of Ray's", DataError, "a: b"),
        ("Killed.\nThe worker died\n", DeviceError, "a Ray worker failed: The worker died; .*"),
    ],
)
def test_errors_of_workers_are_one_line(trace: str, kind: type[CmcError], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}$"), ray_cluster.one_line_errors():
        raise ray.exceptions.RayError(trace)


def test_where_ray_is_absent_the_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, bundled_models: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'pip install "cmc-local\[ray\]"'):
        ray_cluster.import_ray()
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n', "utf-8")
    words = ("generate", "-m", str(bundled_models / "template.gguf"), "-i", str(source))
    done = CliRunner().invoke(main, (*words, "--ray", "local"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert 'ray is not installed: pip install "cmc-local[ray]"' in done.stderr


def test_the_command_loads_no_ray_unless_asked_and_nothing_is_reported_home() -> None:
    program = (
        "import sys, os, cmc_local, cmc_local.commands.generate\n"
        "assert not {'ray', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "os.environ['RAY_USAGE_STATS_ENABLED'] = '1'\n"
        "import cmc_local.integrations.ray\n"
        "from ray._common.usage import usage_lib\n"
        "assert not usage_lib.usage_stats_enabled()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
