"""Several processes that train together (torchrun, accelerate launch), or one as usual."""

from __future__ import annotations

import os

import torch
from torch import distributed


def processes() -> int:
    """How many train together; 1 before they have found each other."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def launched() -> int:
    """How many were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the one that writes files and says what happens."""
    return os.environ.get("RANK", "0") == "0"


def own_gpu() -> torch.device:
    """The GPU of this process: those that share a machine have one each."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def agreed(wish: bool) -> bool:
    """Whether any of the processes wishes it; all have to ask."""
    if processes() == 1:
        return wish
    told = torch.tensor(float(wish), device=_device())
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return bool(told > 0)


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if processes() > 1:
        distributed.barrier()


def _device() -> torch.device:
    on_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
