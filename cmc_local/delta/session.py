"""An adapter's graph opened in ONNX Runtime: checked first, quiet beside the base model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmc_local.delta.adapter import GRAPHS, Adapter, Precision
from cmc_local.delta.device import CPU_PROVIDER, CUDA_PROVIDER, Device
from cmc_local.delta.library import ort
from cmc_local.delta.onnx_file import objections
from cmc_local.errors import AdapterError, DeviceError
from cmc_local.lifetime import trim_heap

Options = Callable[[int], ort.SessionOptions]
"""Threads -> how a session is to run."""

_SPINNING = {
    "intra_op.allow_spinning": "1",
    "intra_op.spin_duration_us": "20",  # microseconds; unbounded before ONNX Runtime 1.31
    "force_spinning_stop": "1",  # with the run's end
}


def quiet_options(threads: int) -> ort.SessionOptions:
    """A pinned number of threads that leave the cores to the base model.

    Between runs they sleep. Within one they spin for a moment where there is nothing to do: a run
    is dozens of short operators, and waking a thread takes as long as one of them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Otherwise each new length of a feed leaves a plan of its memory behind, for ever: some 15 kB.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what goes wrong is raised
    for name, value in _SPINNING.items():
        options.add_session_config_entry(f"session.{name}", value)
    return options


def open_session(
    adapter: Adapter,
    precision: Precision,
    device: Device,
    device_id: int,
    options: ort.SessionOptions,
    *,
    cuda_graph: bool = False,
) -> Any:
    """The graph as an ort.InferenceSession, made from the very bytes that were checked."""
    path = adapter.graph(precision)
    data = adapter.read(path.name)
    if reason := objections(data):
        raise AdapterError(f"{path} {reason}: export it anew with `cmc-local export`")
    providers: list[Any] = [CPU_PROVIDER]
    if device == "cuda":
        graph = {"enable_cuda_graph": "1"} if cuda_graph else {}
        providers.insert(0, (CUDA_PROVIDER, {"device_id": str(device_id), **graph}))
    try:
        session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = str(error).strip().splitlines()[0]
        if device == "cuda":
            raise DeviceError(
                f"cuda:{device_id} cannot run {path.name} ({reason}): use --delta-device cpu"
            ) from None
        raise AdapterError(
            f"{path} cannot be opened ({reason}): export it anew with `cmc-local export`"
        ) from None
    if device == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:
        raise DeviceError(
            f"cuda:{device_id} was not taken by ONNX Runtime: use --delta-device cpu, or look at "
            "`cmc-local doctor`"
        )
    _check_signature(session, adapter, precision)
    session._model_bytes = None  # kept for a fallback that is never taken: the whole file
    del data
    trim_heap()
    return session


def _check_signature(session: Any, adapter: Adapter, precision: Precision) -> None:
    """The graph must have the inputs and outputs that adapter.json's shape implies."""
    s = adapter.settings.shape
    names = [f"{kind}_{i}" for i in range(s.layers) for kind in ("key", "value")]
    cache = ["B", s.kv_heads, "S", s.head_dim]
    expected = {
        "input_ids": ["B", "T"],
        "seqlens_k": ["B"],
        "total_sequence_length": [1],
        "logit_positions": ["K"],
        "logits": ["B", "K", s.vocabulary],
        **{f"{time}_{name}": cache for name in names for time in ("past", "present")},
    }
    values = [*session.get_inputs(), *session.get_outputs()]
    if {value.name: value.shape for value in values} != expected:
        raise AdapterError(
            f"{adapter.path / GRAPHS[precision]} has other inputs or outputs than adapter.json's "
            "shape implies: export it anew with `cmc-local export`"
        )
