"""What an ONNX file may not ask for is found in its bytes."""

from __future__ import annotations

import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from cmc_local.delta.onnx_file import objections


def elsewhere() -> TensorProto:
    """A tensor whose numbers are in another file."""
    tensor = TensorProto(name="x", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../weights.bin")
    return tensor


def holding(*nodes: NodeProto, weights: list[TensorProto] | None = None) -> bytes:
    """A model whose graph adds two numbers, and does this besides."""
    add = helper.make_node("Add", ["a", "b"], ["c"])
    graph = GraphProto(name="g", node=[add, *nodes], initializer=weights or [])
    return ModelProto(ir_version=10, graph=graph).SerializeToString()


def test_plain_arithmetic_and_the_operators_of_a_delta_may_be_opened() -> None:
    attention = helper.make_node("GroupQueryAttention", ["q"], ["y"], domain="com.microsoft")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert objections(holding(attention, weights=[weight])) is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (holding(weights=[elsewhere()]), "external data"),
        (holding(helper.make_node("Constant", [], ["x"], value=elsewhere())), "external data"),
        (
            holding(helper.make_node("EPContext", [], ["y"], domain="com.microsoft")),
            "operator com.microsoft::EPContext",
        ),
        (holding(helper.make_node("Own", [], ["y"], domain="mine")), "operator mine::Own"),
        (
            holding(helper.make_node("If", ["a"], ["y"], then_branch=GraphProto(name="inner"))),
            "nested graph",
        ),
        (ModelProto(functions=[onnx.FunctionProto(name="f")]).SerializeToString(), "functions"),
        (b"", "not an ONNX file"),
        (b"no graph at all", "not an ONNX file"),
        (b"\x08\x08", "not an ONNX file"),
        (b"\x3a\x7f" + b"x" * 9, "not an ONNX file"),
    ],
)
def test_anything_else_is_named(model: bytes, reason: str) -> None:
    assert reason in str(objections(model))
