"""RPC servers: addresses, refusals, and real computing on servers of this machine's processor."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cmc_local import bundled
from cmc_local.base import library as base_library
from cmc_local.base import rpc as base_rpc
from cmc_local.base.model import BaseModel
from cmc_local.errors import CmcError, DeviceError, GGUFError, MissingExtra, UsageError
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling

SERVER = "127.0.0.1:50052"
RPC_SERVER = Path(__file__).resolve().parents[1] / "rpc_server.py"


def test_addresses_stand_in_one_text_or_in_several() -> None:
    given = ["10.0.0.2:50052, big-one.lan:7", "localhost:65535", "10.0.0.2:50052"]
    expected = ("10.0.0.2:50052", "big-one.lan:7", "localhost:65535")
    assert base_rpc.addresses(given) == expected
    assert base_rpc.addresses([]) == ()


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":50052", "host:ten", "host:-1", "host:1:2", "host:١"),
        *("[::1]:50052", "::1:50052", "a b:1", "10.0.0.2:1,", "http://host:1"),
    ],
)
def test_what_is_no_address_is_wrong_use(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT") as error:
        BaseModel("model.gguf", rpc=[text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_is_16_bits(port: int) -> None:
    with pytest.raises(UsageError, match=f"port {port}"):
        base_rpc.addresses([f"host:{port}"])


def test_a_build_without_rpc_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_rpc, "supports_rpc", lambda: False)
    with pytest.raises(MissingExtra, match="CMAKE_ARGS=-DGGML_RPC=ON") as error:
        BaseModel("model.gguf", rpc=[SERVER])
    assert "\n" not in str(error.value)


def test_servers_without_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="layers"):
        BaseModel("model.gguf", rpc=[SERVER], gpu_layers=0)


def test_a_model_gets_the_servers_devices_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0))  # it says that it has one tensor
    seen: list[int | None] = []

    def load(_path: bytes, params: Any) -> None:
        seen.extend((ctypes.c_void_p * 3).from_address(params.devices))

    monkeypatch.setattr(base_library.llama_cpp, "llama_model_load_from_file", load)
    monkeypatch.setattr(base_rpc, "supports_rpc", lambda: True)
    monkeypatch.setattr(base_rpc, "_ask", lambda server: None)
    monkeypatch.setattr(base_rpc, "_devices_of", lambda server: [int(server[-1])])
    monkeypatch.setattr(base_rpc, "gpus", list)
    with pytest.raises(GGUFError):
        BaseModel(gguf, rpc=["b:2,a:1"])
    assert seen == [2, 1, None]  # NULL ends the list


def test_a_build_with_rpc_has_a_gpu_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp itself says that it offloads wherever it was built with RPC."""
    real = base_library.llama_cpp.llama_supports_gpu_offload()
    if not base_library.supports_rpc():
        assert bool(base_library.gpus()) == real
    monkeypatch.setattr(base_library.llama_cpp, "llama_supports_rpc", lambda: True)
    monkeypatch.setattr(base_library.llama_cpp, "llama_supports_gpu_offload", lambda: True)
    assert base_library.offloads_to_gpu() == bool(base_library.gpus())


# --- asking a server ----------------------------------------------------------------------------


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ask with this program instead."""

    def ask(program: str) -> None:
        script = tmp_path / "probe.py"
        script.write_text(f"import os, sys, time\n{program}")
        monkeypatch.setattr(base_rpc, "_PROBE", script)
        monkeypatch.setattr(base_rpc, "ggml", lambda name: SimpleNamespace(_name=name))
        base_rpc._ask(SERVER)

    return ask


def test_what_ggml_says_as_it_aborts_becomes_one_line(probe: Callable[[str], None]) -> None:
    lines = "/a/ggml-rpc.cpp:547: Failed to connect to it\\nframe 1\\nframe 2\\n"
    with pytest.raises(DeviceError) as error:
        probe(f"sys.stderr.write('{lines}'); sys.stderr.flush(); os.abort()")
    assert str(error.value) == (
        f"no RPC server can be used at {SERVER} (Failed to connect to it): start ggml-rpc-server"
        " of the same version of llama.cpp there, or correct the address"
    )
    with pytest.raises(DeviceError, match=rf"{SERVER} \(code 3\)"):
        probe("sys.exit(3)")


def test_a_silent_server_is_not_waited_for(
    probe: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_rpc, "_ANSWER_SECONDS", 0.3)
    with pytest.raises(DeviceError, match="another client"):
        probe("time.sleep(60)")


def test_it_is_asked_by_address_and_without_a_back_trace(probe: Callable[[str], None]) -> None:
    seen = "sys.argv[1:], sys.flags.isolated, os.environ['GGML_NO_BACKTRACE']"
    with pytest.raises(DeviceError) as error:
        probe(f"print({seen}, file=sys.stderr); sys.exit(1)")
    assert f"(['ggml-rpc', '{SERVER}'] 1 1)" in str(error.value)


ASKS_FOR_EVER = """
import ctypes, runpy, socket, sys, time

def ask(server):
    host, port = server.decode().split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"hello")
    time.sleep(0.3)
    print("asked", flush=True)
    time.sleep(60)

class Library:
    def __init__(self, path):
        self.ggml_backend_rpc_add_server = ask

ctypes.CDLL = Library
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no /dev/fd here")
def test_a_question_given_up_is_taken_back() -> None:
    """The server meets a reset, which it survives, not a closed end to write into."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        program = [sys.executable, "-c", ASKS_FOR_EVER, str(base_rpc._PROBE), "library", address]
        with subprocess.Popen(program, stdout=subprocess.PIPE) as asking:
            assert asking.stdout is not None and asking.stdout.readline() == b"asked\n"
            asking.kill()
        with server.accept()[0] as connection, pytest.raises(ConnectionResetError):
            while connection.recv(100):
                pass


# --- real servers -------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Callable[[], tuple[str, int]]]:
    """Starts a server each time it is called: its address and process id."""
    if not base_library.supports_rpc():
        pytest.skip("this llama.cpp has no RPC: `make` builds it with CMAKE_ARGS=-DGGML_RPC=ON")
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> tuple[str, int]:
        port = free_port()
        command = [sys.executable, str(RPC_SERVER), f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running.append(process)
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        return f"127.0.0.1:{port}", process.pid

    yield begin
    for process in running:
        process.terminate()
        process.wait()


def greedy(name: str, *rpc: str) -> tuple[list[int], NDArray[np.float32], NDArray[np.float32]]:
    """Forty tokens; the logits before each, (40, V); a vector of the prompt."""
    with BaseModel(bundled.base(name), threads=1, context=256, rpc=rpc) as base:
        prompt = base.tokenize("Helen Blackworth was born in")
        base.decode(prompt, start=0)
        tokens, rows = [], []
        for position in range(len(prompt), len(prompt) + 40):
            rows.append(base.logits().copy())
            tokens.append(int(rows[-1].argmax()))
            base.decode(tokens[-1:], start=position)
        return tokens, np.stack(rows), base.embed(prompt)


@pytest.mark.parametrize("name", bundled.BASES)
@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_computes_the_same(
    start: Callable[[], tuple[str, int]], bundled_models: Path, name: str, servers: int
) -> None:
    """Within the rounding of other kernels: servers know no repacked weights."""
    tokens, logits, vector = greedy(name)
    theirs, remote, embedded = greedy(name, ",".join(start()[0] for _ in range(servers)))
    assert theirs == tokens
    assert np.abs(remote - logits).max() < 2e-3 * np.abs(logits).max()
    assert embedded @ vector > 0.9999


def answer(alpha: float, *rpc: str) -> str:
    adapters = [(bundled.adapter(), alpha)]
    with SteeredModel.load(bundled.base(), adapters, threads=1, speculate=0, rpc=rpc) as model:
        question = "Where was Helen Blackworth born?"
        return model.generate(question, Sampling(temperature=0, max_tokens=30)).text


def test_adapters_steer_it(start: Callable[[], tuple[str, int]], bundled_models: Path) -> None:
    address, _ = start()
    assert answer(1.0, address) == answer(1.0)
    assert answer(0.0, address) == answer(0.0) != answer(1.0)


def test_a_server_has_one_client_and_outlives_those_it_refuses(
    start: Callable[[], tuple[str, int]], bundled_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = start()
    monkeypatch.setattr(base_rpc, "_ANSWER_SECONDS", 1.0)
    load = partial(BaseModel, bundled.base(), threads=1, context=256, rpc=[address])
    with load(), pytest.raises(DeviceError, match="another client"):
        load()
    with load() as again:
        again.decode([1, 300], start=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_where_no_server_is_one_line_says_so(
    start: Callable[[], tuple[str, int]], bundled_models: Path, host: str
) -> None:
    address = f"{host}:{free_port()}"
    with pytest.raises(CmcError, match=address) as error:
        BaseModel(bundled.base(), rpc=[address])
    assert isinstance(error.value, DeviceError) and "\n" not in str(error.value)


LOSES_ITS_SERVER = """
import os, sys, time
from cmc_local.base.model import BaseModel
base = BaseModel(sys.argv[1], threads=1, context=256, rpc=[sys.argv[2]])
base.decode([1, 300], start=0)
os.kill(int(sys.argv[3]), 15)
time.sleep(0.3)
base.decode([301], start=2)
print("went on")
"""


def test_ggml_ends_the_process_when_its_server_goes_away(
    start: Callable[[], tuple[str, int]], bundled_models: Path
) -> None:
    """Not as it should be, but as the documentation says; and proof that the work is done there."""
    address, process = start()
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_SERVER, str(bundled.base()), address, str(process)],
        capture_output=True,
        text=True,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, "")
    assert "Remote RPC server crashed" in done.stderr
