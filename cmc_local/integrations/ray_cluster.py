"""The way to a Ray cluster: connecting, the workers that suit its machines, its errors in one line.

Knows nothing of models and rows. Importing it needs no Ray; `import_ray` says what to install.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cmc_local import errors
from cmc_local.errors import CmcError, DeviceError, MissingExtra, UsageError

OBJECTS_BYTES: Final = 200_000_000
"""What a Ray started here keeps of rows in memory; more goes to disk."""
CONNECT_SECONDS: Final = 5.0
RESTARTS: Final = 3
"""How often a worker that dies is started again, and what it had begun tried again."""
LONGEST_REASON: Final = 300
"""Characters of what Ray says."""


def import_ray() -> Any:
    """Ray with its data part, told to report nothing home; MissingExtra where it is absent."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:  # without its data part Ray is there, but not all it needs
        name = getattr(error, "name", None) or "ray"
        raise MissingExtra(f'{name} is not installed: pip install "cmc-local[ray]"') from None
    return ray


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How many actors there are, each with a model of its own, and what each of them takes."""

    count: int | None = None
    """None is one for each machine."""
    cpus: int | None = None
    """Cores of each, which are the base model's threads too; None shares out those of a machine
    but one, which is left to what reads and writes the rows."""
    gpus: float = 0.0
    """GPUs of each. Ray hides them from a worker that takes none."""

    def __post_init__(self) -> None:
        for name in ("count", "cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"workers: {name} must be at least 1, not {value}")
        if not 0.0 <= self.gpus < math.inf:
            raise UsageError(f"workers: gpus must be at least 0, not {self.gpus}")

    def on(self, machines: Sequence[Mapping[str, float]]) -> Workers:
        """Count and cores for machines with such resources; UsageError where none has enough.

        >>> Workers(count=4).on([{"CPU": 9.0}, {"CPU": 17.0}])
        Workers(count=4, cpus=4, gpus=0.0)
        """
        fit = [one for one in machines if one.get("CPU", 0) >= 1 and one.get("GPU", 0) >= self.gpus]
        fit = [one for one in fit if one["CPU"] >= (self.cpus or 1)]
        if not fit:
            asked = f"{self.cpus or 1} cores" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise UsageError(f"no machine of the Ray cluster has {asked}: ask for less per worker")
        count = self.count or len(fit)
        each = math.ceil(count / len(fit))
        cores = int(min(one["CPU"] for one in fit)) - 1
        return replace(self, count=count, cpus=self.cpus or max(cores // each, 1))


def fitted(workers: Workers) -> Workers:
    """The workers with count and cores for the cluster that this process is connected to."""
    ray = import_ray()
    if not ray.is_initialized():
        raise UsageError('not connected to Ray: write `with connected("auto"):`, or ray.init()')
    return workers.on([one["Resources"] for one in ray.nodes() if one["Alive"]])


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster: `auto`, `local` (one of this process), host:port, ray://host:port.

    A local one has no dashboard, and listens on the loopback address alone. Ray's own messages stay
    in its log files. Raises UsageError for an address that is none, DeviceError where no cluster
    answers.
    """
    ray = import_ray()
    if ray.is_initialized():
        raise UsageError("this process is connected to Ray already: call ray.shutdown() first")
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address == "local":
        how |= {"include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
    elif address != "auto":
        _answers(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _silent():
            _connect(ray, address, how)
        with _quiet(ray.data.DataContext.get_current()):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a worker failed with as the error that it raised there, or else as a DeviceError."""
    ray = import_ray()
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _cause(str(error)) from None


def _cause(trace: str) -> CmcError:
    """The last error of this program in a traceback; where there is none what Ray says."""
    found = re.findall(r"\bcmc_local\.errors\.(\w+): (.+)", trace)
    if found:
        name, message = found[-1]
        kind: type[CmcError] = getattr(errors, name)
        return kind(message)
    if died := re.search(r"class_name: MapWorker.*?\bip: (\S+)", trace, re.DOTALL):
        return DeviceError(
            f"a worker on machine {died[1]} died {RESTARTS + 1} times (out of memory, or a crash: "
            "Ray's logs there tell more) and is not started again: ask for fewer workers or fewer "
            "rows at once, or leave out the row that it dies of"
        )
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    last = lines[-1][:LONGEST_REASON] if lines else "no reason given"
    return DeviceError(f"a Ray worker failed: {last}; Ray's logs on that machine tell more")


def _connect(ray: Any, address: str, how: Mapping[str, Any]) -> None:
    try:
        with _loopback(ray) if address == "local" else contextlib.nullcontext():
            ray.init(address, **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto":
            raise DeviceError(
                "no Ray is running here: start one with `ray start --head`, or use local"
            ) from error
        reason = " ".join(str(error).split())[:LONGEST_REASON].rstrip(".")
        if "ray[client]" in reason:
            raise MissingExtra(f'{address} needs Ray Client: pip install "ray[client]"') from None
        raise DeviceError(
            f"cannot use Ray at {address} ({reason}): if it wants a token, set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN"
        ) from None


def _answers(address: str) -> None:
    """Raises where nothing listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"Ray at {address!r}: give auto, local, host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise DeviceError(
            f"no Ray is running at {address} ({error.strerror or error}): start one with "
            "`ray start --head`, or use local"
        ) from None


@contextlib.contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """A Ray that is started meanwhile listens on 127.0.0.1 alone, as on macOS and Windows.

    Elsewhere Ray puts the machine's own address in place of that one, even if it is given, and
    listens on all; the variable that says otherwise is read when Ray is imported.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """No progress bars and no log lines of Ray Data, with this context, on the terminal."""
    logger = logging.getLogger("ray.data")
    level, bars = logger.level, context.enable_progress_bars
    logger.setLevel(logging.CRITICAL)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        logger.setLevel(level)
        context.enable_progress_bars = bars


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr, not even from C++, which tells of its log level before it keeps to it."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
