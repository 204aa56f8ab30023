"""llama.cpp's RPC servers: other machines' devices, on which a base model's layers are computed.

    on the other machine    ggml-rpc-server --host 192.168.1.2 --port 50052
    here                    BaseModel("model.gguf", rpc=["192.168.1.2:50052"])

For a model that is larger than one machine. The server comes with llama.cpp and must be of the same
version; this side needs a build with `-DGGML_RPC=ON`, as `make` makes it. What ggml makes of it
stays as it is:

- The traffic is plain text without authentication, and who reaches a server can make it crash or
  worse: use a network that you trust, or a tunnel.
- A server serves one client at a time; a second model, of this process too, is refused.
- A server may die with a client that is killed in mid-decode: it writes into the closed connection.
- When a server goes away ggml aborts this process at the next decode, or as the model is closed.

Knows nothing of models. Addresses are IPv4 or names, as ggml takes no others.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from cmc_local.base.library import ggml, gpus, supports_rpc
from cmc_local.errors import DeviceError, MissingExtra, UsageError

_ANSWER_SECONDS = 10.0
_LIBRARY = "ggml-rpc"
_PROBE = Path(__file__).with_name("rpc_probe.py")


def addresses(given: Iterable[str]) -> tuple[str, ...]:
    """Each `host:port` once, in order; several may stand in one text with commas between them.

    >>> addresses(["10.0.0.2:50052,10.0.0.3:50052", "10.0.0.2:50052"])
    ('10.0.0.2:50052', '10.0.0.3:50052')
    """
    found = [one.strip() for text in given for one in text.split(",")]
    for one in found:
        host, _, port = one.partition(":")
        if not (re.fullmatch(r"[\w.-]+", host, re.ASCII) and re.fullmatch(r"[0-9]{1,5}", port)):
            raise UsageError(
                f"{one!r} is no address of an RPC server: give HOST:PORT, the host as a name or as"
                " four numbers, as in 192.168.1.2:50052"
            )
        if not 0 < int(port) < 65536:
            raise UsageError(f"port {port} of RPC server {one} is not within 1 to 65535")
    return tuple(dict.fromkeys(found))


def devices(servers: Iterable[str]) -> list[int]:
    """What a model's layers can go to, as `ggml_backend_dev_t`: the servers', then GPUs here.

    They are not registered with ggml, so that other models do without them. Raises MissingExtra in
    a build without RPC, UsageError for a bad address, DeviceError where no server answers.
    """
    named = addresses(servers)
    if not supports_rpc():
        raise MissingExtra(
            "this build of llama.cpp has no RPC: build it anew with `make setup`, or give pip"
            " CMAKE_ARGS=-DGGML_RPC=ON"
        )
    for server in named:
        _ask(server)
    return [device for server in named for device in _devices_of(server)] + gpus()


def _ask(server: str) -> None:
    """Let another process connect first: where that fails, ggml aborts the process."""
    library = str(ggml(_LIBRARY)._name)
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_PROBE), library, server],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_SECONDS,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
    except subprocess.TimeoutExpired:
        reason = f"silent for {_ANSWER_SECONDS:g} s; it may be serving another client"
    else:
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip() or f"code {done.returncode}"
        reason = re.sub(r"^\S+:\d+: ", "", said.splitlines()[0])  # the line of ggml's source
    raise DeviceError(
        f"no RPC server can be used at {server} ({reason}): start ggml-rpc-server of the same"
        " version of llama.cpp there, or correct the address"
    )


def _devices_of(server: str) -> list[int]:
    rpc, base = ggml(_LIBRARY), ggml("ggml-base")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_count.argtypes = [ctypes.c_void_p]
    base.ggml_backend_reg_dev_count.restype = ctypes.c_size_t
    base.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    offered = rpc.ggml_backend_rpc_add_server(server.encode())
    count = base.ggml_backend_reg_dev_count(offered)
    return [base.ggml_backend_reg_dev_get(offered, i) for i in range(count)]
