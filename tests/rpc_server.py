"""llama.cpp's RPC server on this machine's processor, as `ggml-rpc-server` starts it.

    python rpc_server.py 127.0.0.1:50052

The server's code is in the library that a build with GGML_RPC has anyway, so no program of
llama.cpp's own is needed to test against it.
"""

from __future__ import annotations

import ctypes
import sys

from cmc_local.base.library import ggml

PROCESSOR = 0  # GGML_BACKEND_DEVICE_TYPE_CPU, ggml-backend.h


def serve(endpoint: str, threads: int = 1) -> None:
    """Serve until the process is ended."""
    devices = ggml("ggml")
    devices.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    processor = ctypes.c_void_p(devices.ggml_backend_dev_by_type(PROCESSOR))
    start = ggml("ggml-rpc").ggml_backend_rpc_start_server
    start.argtypes = (
        *(ctypes.c_char_p, ctypes.c_char_p),
        *(ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)),
    )
    start(endpoint.encode(), None, threads, 1, ctypes.byref(processor))


if __name__ == "__main__":
    serve(sys.argv[1])
