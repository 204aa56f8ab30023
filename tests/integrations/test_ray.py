"""Batches over a Ray cluster: what SteeredModel says, with a worker killed, a file cut or absent.

The cluster is one of two cores in this process's children.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cmc_local import Sampling, SteeredModel
from cmc_local.commands import main
from cmc_local.errors import GGUFError, UsageError
from cmc_local.evaluate.nll import answer_scores, nll_means

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes one into the home folder
pytest.importorskip("pyarrow", reason="Ray's data part is absent: install the extra `ray`")
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
    how = {
        "num_cpus": 2,
        "object_store_memory": 80_000_000,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "CRITICAL",
    }
    ray_cluster._connect(ray, "local", how)
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
    """The processes of actors that answer."""
    return [
        int(place.name)
        for place in processes_from_here()
        if b"MapWorker(MapBatches(Answering))" in (place / "cmdline").read_bytes()
    ]


def processes_from_here() -> list[Path]:
    """This process, and those that it or they have started, in /proc."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[place] = (
                Path("/proc") / (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [Path("/proc") / str(os.getpid())]
    for place in found:  # which grows meanwhile
        found += [child for child, parent in parents.items() if parent == place]
    return found


def test_a_local_cluster_listens_on_the_loopback_address_alone(cluster: None) -> None:
    ours = set()
    for place in processes_from_here():
        for file in (place / "fd").iterdir():
            with contextlib.suppress(OSError):
                ours.add(os.readlink(file))
    heard = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in ours:  # it listens
                heard.append(local.partition(":")[0])
    # 127.0.0.1 in the processor's order of bytes: in IPv4, and as IPv6 writes it.
    assert set(heard) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(heard) >= 3  # what keeps the cluster's state, what starts its workers, this process


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


def test_a_row_that_kills_its_worker_ends_the_run_and_resume_goes_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, questions: list[Row]
) -> None:
    source, target, deaths = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "deaths"))
    rows = [json.dumps(row) + "\n" for row in (*questions[:5], {"prompt": "die"}, questions[5])]
    words = ("-i", str(source), "-o", str(target), "--resume")
    source.write_text("".join(rows[:2]), "utf-8")
    assert run(*words).exit_code == 0
    written = target.read_bytes().splitlines(keepends=True)
    source.write_text("".join(rows), "utf-8")

    class Mortal(ray_worker.Answering):
        def work(self, rows: Sequence[Row]) -> list[Row]:
            if any(row["messages"][-1]["content"] == "die" for row in rows):
                with deaths.open("a") as file:
                    file.write("x")
                if deaths.stat().st_size < 5:  # else this test would have no end
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().work(rows)

    for module in (over_ray, ray_cluster):
        monkeypatch.setattr(module, "RESTARTS", 1)
    spread = over_ray.spread
    monkeypatch.setattr(over_ray, "spread", lambda _, *rest, **how: spread(Mortal, *rest, **how))
    done = run(*words, "--ray", "local", "-p", "1")
    assert done.exit_code == 1
    line = done.stderr.splitlines()[-1]
    assert "error: a worker on machine 127.0.0.1 died 2 times (out of memory, or a crash" in line
    assert deaths.read_text() == "xx"  # begun once, and once more
    kept = target.read_bytes().splitlines(keepends=True)
    assert kept[:2] == written and len(kept) <= 5
    assert run(*words).exit_code == 0
    found = target.read_bytes().splitlines(keepends=True)
    assert found[: len(kept)] == kept and len(found) == 7
    assert all(json.loads(one)["response"] for one in found)


def test_another_file_at_the_same_path_ends_the_run(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundled_models: Path
) -> None:
    source, adapter = tmp_path / "in.jsonl", tmp_path / "mine"
    source.write_text('{"prompt": "a"}\n', "utf-8")
    shutil.copytree(bundled_models / "instruct", adapter)
    spread = over_ray.spread

    def elsewhere(*given: Any, **how: Any) -> Any:
        """Workers meet another adapter than the one that this process has seen."""
        with (adapter / "adapter.json").open("a") as file:
            file.write("\n")
        return spread(*given, **how)

    monkeypatch.setattr(over_ray, "spread", elsewhere)
    done = run("-i", str(source), "--ray", "local", "--adapter", f"{adapter}:1")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"on machine {socket.gethostname()} (" in done.stderr
    assert f"{adapter / 'adapter.json'} is another file than where the work" in done.stderr


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
    with warnings.catch_warnings(action="error"):  # a user would see Ray's
        over_ray.generate(rows, *steered(bundled_models))  # one worker of one core by default
