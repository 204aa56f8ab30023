"""Ways to a Ray cluster, without one: addresses, workers that suit machines, errors in a line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmc_local.commands import main
from cmc_local.errors import CmcError, DataError, DeviceError, MissingExtra, UsageError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes one into the home folder
ray = pytest.importorskip("ray", reason="Ray is absent: install the extra `ray`")
pytest.importorskip("pyarrow", reason="Ray's data part is absent: install the extra `ray`")
from cmc_local.integrations import ray_cluster  # noqa: E402
from cmc_local.integrations.ray_cluster import Workers  # noqa: E402


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
        pytest.raises(UsageError, match="host:port"),
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
        "print({'ray', 'pyarrow', 'pandas'} & {*sys.modules})\n"
        "os.environ['RAY_USAGE_STATS_ENABLED'] = '1'\n"
        "import cmc_local.integrations.ray\n"
        "from ray._common.usage import usage_lib\n"
        "print(usage_lib.usage_stats_enabled())\n"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert said == "set()\nFalse\n"
