"""An ONNX graph in the making: nodes and weights, then the bytes of a checked file.

    nodes = Nodes()
    y = nodes.add("MatMul", "x", nodes.weight("w", w))      # "MatMul_0"
    nodes.rename(y, "y")
    data = nodes.file({"x": (np.float32, ("B", 4))}, {"y": (np.float32, ("B", 2))})

Knows nothing of what the graph computes. The same calls give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OWN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
OPSET = 20
_IR_VERSION = 10

Shape = tuple[type[Any], Sequence[int | str]]
"""Element type (numpy's), and sizes or the names of free axes."""


class Nodes:
    """Nodes and weights, in the order in which they were added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def add(
        self,
        kind: str,
        *inputs: str,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; its first output, which is named by itself unless `outputs` says how."""
        names = list(outputs) or [f"{kind}_{len(self._nodes)}"]
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]

    def add_two(
        self,
        kind: str,
        inputs: Sequence[str],
        *,
        places: tuple[int, int],
        domain: str,
        **attributes: Any,
    ) -> tuple[str, str]:
        """Add a node of which two outputs are used, the ones at `places`."""
        names = [""] * (max(places) + 1)
        for place in places:
            names[place] = f"{kind}_{len(self._nodes)}_{place}"
        self.add(kind, *inputs, outputs=names, domain=domain, **attributes)
        return names[places[0]], names[places[1]]

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant; its name, made different from those before it."""
        unique = name if name not in self._weights else f"{name}_{len(self._weights)}"
        self._weights[unique] = numpy_helper.from_array(np.ascontiguousarray(values), unique)
        return unique

    def number(self, value: float) -> str:
        """A float32 scalar; equal ones are stored once."""
        return self._shared(f"number_{value!r}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """A row of int64; equal ones are stored once."""
        return self._shared(f"integers_{values!r}", np.array(values, np.int64))

    def _shared(self, name: str, values: NDArray[Any]) -> str:
        return name if name in self._weights else self.weight(name, values)

    @staticmethod
    def type_number(dtype: type[Any]) -> int:
        """ONNX's number of an element type."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def rename(self, old: str, new: str) -> None:
        """Give the last node's output its name in the signature."""
        outputs = self._nodes[-1].output
        outputs[list(outputs).index(old)] = new

    def file(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> bytes:
        """The file of everything so far, checked by onnx."""
        graph = helper.make_graph(
            self._nodes, "delta", _values(inputs), _values(outputs), list(self._weights.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)],
            ir_version=_IR_VERSION,
            producer_name="cmc-local",
        )
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _values(signature: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, Nodes.type_number(dtype), list(sizes))
        for name, (dtype, sizes) in signature.items()
    ]
