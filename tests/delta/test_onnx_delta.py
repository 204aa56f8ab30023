"""The ONNX delta: equal to PyTorch however its tokens are cut, rolled back or slotted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny_adapters
from cmc_local.delta import onnx_delta as delta
from cmc_local.delta.adapter import Adapter, write
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import AdapterError, UsageError

Float = NDArray[np.float32]
TOKENS = tuple((7 * i * i + 3 * i + 5) % 300 for i in range(60))  # any, but always the same
CLOSE = 1e-5  # relative to the largest logit; float32 over two layers gives about 1e-6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapters.checkpoint(tmp_path_factory.mktemp("deltas") / "tiny")


@pytest.fixture(scope="module")
def tiny_adapter(checkpoint: Path) -> Adapter:
    return tiny_adapters.adapter_of(checkpoint, checkpoint.with_name("adapter"))


@pytest.fixture(scope="module")
def source(tiny_adapter: Adapter) -> OnnxDelta:
    return OnnxDelta(tiny_adapter, device="cpu", slots=3, precision="fp32")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Float:
    """(60, V) float32: PyTorch's logits after each of TOKENS."""
    return pytorch(checkpoint, TOKENS)


def pytorch(folder: Path, tokens: Sequence[int]) -> Float:
    import torch

    from cmc_export import delta_model

    with torch.no_grad():
        logits: Float = delta_model.load(folder)(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def apart(found: Float, wanted: Float) -> float:
    """The largest difference, relative to the largest logit."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def empty(source: OnnxDelta, slot: int = 0) -> OnnxDelta:
    source.truncate(slot, 0)
    return source


def test_one_chunk_equals_pytorch(source: OnnxDelta, expected: Float) -> None:
    assert apart(empty(source).feed(0, TOKENS, rows=60), expected) < CLOSE


def test_single_steps_equal_pytorch(source: OnnxDelta, expected: Float) -> None:
    empty(source)
    steps = [source.feed(0, [token]) for token in TOKENS]
    assert apart(np.concatenate(steps), expected) < CLOSE


@given(
    cuts=st.lists(st.integers(1, 59), max_size=8, unique=True).map(sorted),
    strays=st.lists(st.integers(0, 299), max_size=9),
    rows=st.integers(1, 60),
)
def test_feeds_in_any_parts_with_strays_rolled_back_equal_one_feed(
    source: OnnxDelta, expected: Float, cuts: list[int], strays: list[int], rows: int
) -> None:
    empty(source, 1)
    for start, stop in zip([0, *cuts], [*cuts, 60], strict=True):
        source.feed(1, strays)
        source.truncate(1, start)
        found = source.feed(1, TOKENS[start:stop], rows=rows)
        kept = min(rows, stop - start)
        assert apart(found, expected[stop - kept : stop]) < CLOSE
    assert source.length(1) == 60


def test_a_feed_longer_than_a_chunk_gives_all_rows(
    source: OnnxDelta, expected: Float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CHUNK", 16)
    assert apart(empty(source).feed(0, TOKENS, rows=60), expected) < CLOSE
    assert apart(empty(source).feed(0, TOKENS, rows=20), expected[-20:]) < CLOSE
    assert apart(empty(source).feed(0, TOKENS), expected[-1:]) < CLOSE


def test_8_bit_weights_stay_near_pytorch(tiny_adapter: Adapter, expected: Float) -> None:
    source = OnnxDelta(tiny_adapter, device="cpu", precision="int8")
    found = source.feed(0, TOKENS, rows=60)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 0.1
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.8  # random weights: many near ties


def test_the_cpu_takes_8_bits_by_itself(tiny_adapter: Adapter) -> None:
    source = OnnxDelta(tiny_adapter, device="cpu")
    assert (source.precision, source.device, source.context) == ("int8", "cpu", 128)


def test_threads_sleep_between_runs(tiny_adapter: Adapter) -> None:
    source = OnnxDelta(tiny_adapter, device="cpu", threads=3)
    source.feed(0, TOKENS)
    source.feed(0, [1])
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03  # one spinning thread would take 0.3


def test_a_full_context_is_an_error_that_changes_nothing(source: OnnxDelta) -> None:
    empty(source).feed(0, TOKENS)
    with pytest.raises(UsageError, match="69 tokens"):
        source.feed(0, [1] * 69)
    assert source.length(0) == 60
    source.feed(0, [1] * 68)
    assert source.length(0) == 128


def test_a_folder_with_grouped_heads_untied_and_bfloat16_is_the_same_delta(tmp_path: Path) -> None:
    from cmc_export import delta_model

    folder = tiny_adapters.checkpoint(tmp_path / "bf16", kv_heads=1, tied=False, layers=1)
    delta_model.load(folder).bfloat16().save_pretrained(folder)
    made = tiny_adapters.adapter_of(folder, tmp_path / "adapter", ["fp32"])
    found = OnnxDelta(made, device="cpu").feed(0, TOKENS, rows=60)
    assert apart(found, pytorch(folder, TOKENS)) < CLOSE


def with_graph(adapter: Adapter, folder: Path, model: onnx.ModelProto) -> Adapter:
    """The same adapter with another fp32 graph, hashes and all in order."""
    files = {"delta.onnx": model.SerializeToString(), "tokenizer.json": adapter.tokenizer_json}
    return write(folder, adapter.settings, files)


def test_a_graph_of_another_shape_is_refused(tiny_adapter: Adapter, tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_adapter.read("delta.onnx"))
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "tokens" if name == "input_ids" else name
    with pytest.raises(AdapterError, match="other inputs or outputs"):
        OnnxDelta(with_graph(tiny_adapter, tmp_path / "a", model), device="cpu")


def test_a_graph_is_searched_before_it_is_opened(tiny_adapter: Adapter, tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_adapter.read("delta.onnx"))
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(AdapterError, match=r"delta\.onnx .*external data") as caught:
        OnnxDelta(with_graph(tiny_adapter, tmp_path / "a", model), device="cpu")
    assert "\n" not in str(caught.value)
