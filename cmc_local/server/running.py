"""The running server: a socket, a model that is loaded meanwhile, signals, the end.

    socket open -> the model is loaded in a thread (503 loading) -> ready
    first SIGTERM or SIGINT: no new connection, 503 draining, until what is under way is done
    second: the process ends at once

With protocol.py the one user of uvicorn. `Server.should_exit` stays false while replies are under
way, because sse-starlette ends every stream once it is true.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from cmc_local.errors import CmcError, UsageError
from cmc_local.server.app import application
from cmc_local.server.guard import Policy
from cmc_local.server.protocol import Protocol
from cmc_local.server.served import Entry
from cmc_local.server.service import Service

_KEEP_ALIVE_SECONDS: Final = 30
_HEAD_BYTES: Final = 64 * 2**10


def listen(host: str, port: int) -> socket.socket:
    """An open socket that listens. Raises CmcError where the address is taken, or none here."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from error
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere this would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        told = f"cannot listen on {host}, port {port} ({error.strerror})"
        raise CmcError(f"{told}: choose another with --port") from error
    return listening


def serve(
    service: Service,
    policy: Policy,
    listening: socket.socket,
    *,
    ready: Callable[[], None],
    on_demand: bool = False,
) -> None:
    """Serve until a signal; `ready` is called when the first model is there.

    With `on_demand` it is there from the beginning, and each model is loaded when it is asked for.
    Else raises what the loading of the first one raised. Ends the process on a second signal, and
    where a model is still being loaded at the end.
    """
    _log_to_stderr()
    config = uvicorn.Config(
        application(service, policy),
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=service.limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    server = _Server(config, service, None if on_demand else ready)
    if on_demand:
        service.phase = "ready"
        ready()
    server.run(sockets=[listening])
    loader = service.models.loader
    if (
        loader is not None and loader.is_alive()
    ):  # nothing interrupts llama.cpp, and nothing may run beside its end
        sys.stderr.flush()
        os._exit(0)
    service.models.close()
    if server.error is not None:
        raise server.error


class _Server(uvicorn.Server):
    """uvicorn's server, with another end."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        ready: Callable[[], None] | None,
    ) -> None:
        """Without `ready` nothing is loaded at the beginning."""
        super().__init__(config)
        self.error: BaseException | None = None
        self._service = service
        self._ready = ready
        self._closed = False
        self._silent: dict[object, float] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        models = self._service.models
        if self._ready is not None:
            models.ended = self._loaded
            models.begin(models.entries[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.phase == "draining":
            os._exit(128 + sig)
        self._service.phase = "draining"

    async def on_tick(self, counter: int) -> bool:
        self._drop_silent()
        self._service.models.put_away_idle()
        if self._service.phase == "draining":
            self._stop_listening()
            if not self.server_state.tasks:
                return True
        return await super().on_tick(counter)

    def _stop_listening(self) -> None:
        if not self._closed:
            self._closed = True
            for one in self.servers:
                one.close()
            told = "ending %d requests under way; a second signal stops at once"
            logging.getLogger(__name__).warning(told, len(self.server_state.tasks))

    def _drop_silent(self) -> None:
        """Close connections whose next request does not come whole within the time for reading."""
        now, known = time.monotonic(), self._silent
        self._silent = {}
        for connection in list(self.server_state.connections):
            cycle = connection.cycle  # type: ignore[union-attr]
            if cycle is None or cycle.response_complete:
                since = self._silent[connection] = known.get(connection, now)
                if now - since > max(self._service.limits.read_seconds, _KEEP_ALIVE_SECONDS):
                    connection.transport.abort()

    def _loaded(self, entry: Entry) -> None:
        """The first model has been loaded, or not."""
        if entry.error is not None:
            self.error = entry.error
            self._service.phase = "failed"
            self.should_exit = True
            return
        if self._service.phase == "loading":
            self._service.phase = "ready"
        if self._ready is not None:
            self._ready()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("cmc_local", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)
