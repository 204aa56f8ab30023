"""The graph's borders (names, shapes, operators, size) and the arithmetic of 8-bit weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_adapters
from cmc_export import delta_model, graph, quantize
from cmc_local.delta.onnx_file import objections
from cmc_local.delta.session import ort
from cmc_local.errors import InputError, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = tiny_adapters.checkpoint(tmp_path_factory.mktemp("deltas") / "d", layers=1, kv_heads=1)
    return delta_model.load(folder)


@pytest.fixture(scope="module")
def fp32(model: torch.nn.Module) -> bytes:
    return graph.to_onnx(model, 64)


@pytest.fixture(scope="module")
def int8(model: torch.nn.Module) -> bytes:
    return graph.to_onnx(model, 64, quantize.INT8)


def signature(values: object) -> dict[str, tuple[int, list[int | str]]]:
    """Name -> (element type, shape with the names of free axes)."""
    return {
        v.name: (
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in values  # type: ignore[attr-defined]
    }


def test_inputs_and_outputs_are_those_of_the_design(fp32: bytes) -> None:
    found = onnx.load_from_string(fp32).graph
    cache = (onnx.TensorProto.FLOAT, ["B", 1, "S", 16])
    size = signature(found.output)["logits"][1][2]
    assert signature(found.input) == {
        "input_ids": (onnx.TensorProto.INT64, ["B", "T"]),
        "seqlens_k": (onnx.TensorProto.INT32, ["B"]),
        "total_sequence_length": (onnx.TensorProto.INT32, [1]),
        "logit_positions": (onnx.TensorProto.INT64, ["K"]),
        "past_key_0": cache,
        "past_value_0": cache,
    }
    assert signature(found.output) == {
        "logits": (onnx.TensorProto.FLOAT, ["B", "K", size]),
        "present_key_0": cache,
        "present_value_0": cache,
    }


def test_hidden_states_are_gathered_before_the_head(fp32: bytes) -> None:
    kinds = [node.op_type for node in onnx.load_from_string(fp32).graph.node]
    last_attention = len(kinds) - 1 - kinds[::-1].index("GroupQueryAttention")
    assert kinds.index("Gather", last_attention) < kinds.index("FusedMatMul")


@pytest.mark.parametrize(("storage", "around"), [(graph.FLOAT32, 4), (quantize.INT8, 5)])
def test_a_step_is_ten_operators_a_layer(
    model: torch.nn.Module, storage: graph.Storage, around: int, tmp_path: Path
) -> None:
    """Around them: embedding, first norm, gather, head; 8-bit rows are put together as well."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "runs.onnx")
    options.log_severity_level = 4  # it warns that the file is for this machine alone
    data = graph.to_onnx(model, 64, storage)
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "runs.onnx").graph.node]
    assert len(kinds) == 10 + around, kinds
    assert kinds.count("SimplifiedLayerNormalization") == 1  # the standard operators, fused


def test_a_tied_matrix_is_stored_once(model: torch.nn.Module, fp32: bytes, int8: bytes) -> None:
    parameters = sum(p.numel() for p in model.parameters())  # counts the tied one once
    tables = 2 * 64 * 8  # cos and sin of 64 positions
    assert 4 * (parameters + tables) < len(fp32) < 4 * (parameters + tables) + 12_000
    # one byte a weight and a scale for 16 or 32 of them; norms and tables in float32
    assert len(int8) < parameters * (1 + 4 / 16) + 4 * tables + 20_000


def test_a_graph_holds_named_operators_and_no_trace_of_where_it_was_made(
    fp32: bytes, int8: bytes
) -> None:
    here = str(Path(graph.__file__).parent).encode()
    for data in (fp32, int8):
        assert objections(data) is None
        assert here not in data
        assert b".py" not in data
        assert b"torch" not in data


def test_a_graph_is_the_same_bytes_each_time(model: torch.nn.Module, fp32: bytes) -> None:
    assert graph.to_onnx(model, 64) == fp32


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "changes with the length"),
        ({"hidden_act": "gelu"}, "is not SiLU"),
        ({"head_dim": 8}, "multiple of 16"),
    ],
)
def test_what_the_graph_cannot_say_is_refused(
    model: torch.nn.Module, config: dict[str, object], reason: str
) -> None:
    kept = {name: getattr(model.config, name) for name in config}
    try:
        for name, value in config.items():
            setattr(model.config, name, value)
        with pytest.raises(InputError, match=reason):
            graph.to_onnx(model, 64)
    finally:
        for name, value in kept.items():
            setattr(model.config, name, value)


def test_quantization_by_hand() -> None:
    weight = torch.zeros(1, 16)
    weight[0, :3] = torch.tensor([0.5, -1.27, 0.0])
    codes, scales = quantize.quantize(weight, 16)
    assert scales[0, 0] == pytest.approx(0.01)  # 1.27 / 127
    assert codes[0, 0, :3].tolist() == [178, 1, 128]  # 50, -127 and 0, each plus 128
    assert quantize.dequantize(codes, scales, 16)[0, :3] == pytest.approx([0.5, -1.27, 0.0])


@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**31))
def test_quantization_errs_by_half_a_step_at_most(width: int, rows: int, seed: int) -> None:
    weight = torch.tensor(np.random.default_rng(seed).normal(size=(rows, width)), dtype=torch.float)
    block = quantize.block_size(width)
    codes, scales = quantize.quantize(weight, block)
    assert codes.shape == (rows, -(-width // block), block)
    found = quantize.dequantize(codes, scales, width)
    half = scales.repeat_interleave(block, 1)[:, :width] / 2
    assert bool(((found - weight).abs() <= half * 1.001 + 1e-9).all())


def test_blocks_are_as_large_as_wastes_little() -> None:
    """688 fills 704, 11 blocks of 64; 288 would fill 320, so it takes 9 blocks of 32."""
    widths = (192, 256, 688, 1376, 288, 96, 336, 344, 48)
    assert [quantize.block_size(w) for w in widths] == [64, 64, 64, 64, 32, 32, 32, 32, 16]


def test_presets_have_the_papers_shapes() -> None:
    shapes = [delta_model.preset(name, vocabulary=32_000) for name in ("15m", "42m", "110m")]
    assert [(s.width, s.layers, s.heads, s.mlp) for s in shapes] == [
        (288, 6, 6, 768),
        (512, 8, 8, 1376),
        (768, 12, 12, 2048),
    ]
    assert all(s.kv_heads == s.heads for s in shapes)


def test_a_preset_with_one_size_of_ones_own() -> None:
    shape = delta_model.preset("nano", vocabulary=900, layers=2, kv_heads=1)
    assert (shape.width, shape.layers, shape.heads, shape.kv_heads) == (128, 2, 4, 1)
    with pytest.raises(UsageError, match=r"no delta preset 'tiny'.*nano-s, nano"):
        delta_model.preset("tiny", vocabulary=900)
    with pytest.raises(UsageError, match="width 130 is no multiple of 4 heads"):
        delta_model.preset("nano", vocabulary=900, width=130)
    with pytest.raises(UsageError, match="heads of 24 are no multiple of 16"):
        delta_model.build(delta_model.preset("nano", vocabulary=900, width=96))


def test_one_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    shape = delta_model.preset("nano-s", vocabulary=50, context=32)
    before = torch.random.get_rng_state()
    first, second = (delta_model.build(shape, seed=5).state_dict() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert delta_model.shape_of(delta_model.build(shape).config) == shape


def test_a_checkpoint_info_survives_the_file(tmp_path: Path) -> None:
    from cmc_local.text.prompts import named_form

    info = delta_model.CheckpointInfo(
        name="x", prompt=named_form("inst"), alpha=0.5, turns="last", training={"steps": 3}
    )
    info.save(tmp_path)
    assert delta_model.read_info(tmp_path) == info
    (tmp_path / "cmc.json").write_text('{"name": "x"}')
    with pytest.raises(InputError, match=r"cmc\.json cannot be read"):
        delta_model.read_info(tmp_path)
    (tmp_path / "cmc.json").unlink()
    assert delta_model.read_info(tmp_path) is None


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_adapters.checkpoint(tmp_path / "d", layers=1)


def test_a_pickle_is_refused_with_the_way_to_convert_it(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        delta_model.load(checkpoint)


def test_folders_that_are_no_delta_are_named(checkpoint: Path) -> None:
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be loaded"):
        delta_model.load(checkpoint)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        delta_model.load(checkpoint)
    config.write_text(config.read_text().replace('"llama"', '"gpt2"'))
    with pytest.raises(InputError, match="model_type 'gpt2'"):
        delta_model.load(checkpoint)
    config.unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        delta_model.load(checkpoint)


def test_weights_that_are_missing_are_not_made_up(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys.*up_proj"):
        delta_model.load(checkpoint)
