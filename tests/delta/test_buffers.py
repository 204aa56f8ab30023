"""Steps on a device are those on the host; a CPU stands for the device here.

What a CUDA graph adds, replaying its first runs, `tests/gpu/check.py` looks at where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest

import tiny_adapters
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.buffers import DeviceSteps, Steps, run_options
from cmc_local.delta.onnx_delta import OnnxDelta

SLOTS = 3
CONTEXT = 24


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tiny_adapters.checkpoint(
        tmp_path_factory.mktemp("deltas") / "tiny", context=CONTEXT, kv_heads=1
    )
    return tiny_adapters.adapter_of(folder, folder.with_name("adapter"))


def on_device(adapter: Adapter, *, capture: bool) -> OnnxDelta:
    """A delta whose steps keep their inputs and logits on the `device`."""
    delta = OnnxDelta(adapter, device="cpu", slots=SLOTS, precision="fp32")
    vocabulary = adapter.settings.shape.vocabulary
    steps = DeviceSteps(delta._session, delta._cache, SLOTS, vocabulary, CONTEXT, capture=capture)
    delta._steps = steps
    return delta


@pytest.mark.parametrize("capture", [False, True])
def test_steps_equal_the_hosts(adapter: Adapter, capture: bool) -> None:
    # Captured steps are told the context's length for the longest row's, which changes nothing.
    host = OnnxDelta(adapter, device="cpu", slots=SLOTS, precision="fp32")
    device = on_device(adapter, capture=capture)
    for slot, length in enumerate((1, 5, 11)):
        for delta in (host, device):
            delta.feed(slot, [(7 * slot + 11 * i) % 300 for i in range(length)])
    for first, last, token in ((0, 2, 5), (1, 1, 9), (0, 2, 6), (0, 1, 8), (1, 1, 2), (2, 2, 3)):
        tokens = dict.fromkeys(range(first, last + 1), token)
        rows = device._step(first, last, tokens).copy()
        np.testing.assert_array_equal(rows, host._step(first, last, tokens))
    assert np.abs(rows).max() > 0.01


def test_both_are_steps(adapter: Adapter) -> None:
    for delta in (
        OnnxDelta(adapter, device="cpu", precision="fp32"),
        on_device(adapter, capture=True),
    ):
        steps: Steps = delta._steps
        assert (steps.ids.dtype, steps.lengths.dtype) == (np.int64, np.int32)


def test_each_captured_graph_has_a_number() -> None:
    assert run_options(7).get_run_config_entry("gpu_graph_id") == "7"
    assert run_options(-1).get_run_config_entry("gpu_graph_id") == "-1"
