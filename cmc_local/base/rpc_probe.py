"""A process of its own that asks an RPC server for its devices, since ggml aborts where one fails.

    python -I rpc_probe.py libggml-rpc.so 192.168.1.2:50052

Ends with 0 if the server can be used, else with a reason on stderr. It is killed while it waits for
a busy server; that server, done with its client, would answer into a closed connection and die of
it (SIGPIPE). A connection that is reset instead of closed only makes it take the next client.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


def _keep_resettable() -> None:
    """Let this process's connections be reset when it ends; ggml opens them out of reach."""
    while True:
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):  # no socket, or closed by now
                connection = socket.socket(fileno=int(name))
                try:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                finally:
                    connection.detach()
        time.sleep(0.01)


def _ask(library: str, server: str) -> None:
    add_server = ctypes.CDLL(library).ggml_backend_rpc_add_server
    add_server.restype = ctypes.c_void_p
    if not add_server(server.encode()):
        sys.exit("it offers no device")


if __name__ == "__main__":
    if os.path.isdir("/dev/fd"):
        threading.Thread(target=_keep_resettable, daemon=True).start()
    _ask(*sys.argv[1:])
