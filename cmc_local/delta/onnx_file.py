"""What an ONNX file would make ONNX Runtime do beyond arithmetic, found before it is opened.

ONNX Runtime reads the files that a tensor's external data names, below or beside the working
directory even for a model given as bytes, and some operators of its own open files as well. So the
file is walked here, without the onnx package: protobuf's wire format is tags and lengths, tensors
are stepped over by their length, so the size of the weights does not matter.

    ModelProto.graph = 7                      GraphProto.node = 1, initializer = 5
    NodeProto.op_type = 4, domain = 7, attribute = 5
    AttributeProto.t = 5, tensors = 10        TensorProto.external_data = 13, data_location = 14
"""

from __future__ import annotations

from collections.abc import Iterator

OWN_OPERATORS = frozenset(
    {
        *("GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized", "FusedMatMul"),
        *("SkipSimplifiedLayerNormalization", "QuickGelu"),
    }
)
"""The operators of ONNX Runtime's own domain that an adapter's graph may hold."""
_OWN_DOMAIN = "com.microsoft"
_STANDARD_DOMAINS = ("", "ai.onnx")

_Field = tuple[int, int, memoryview]
"""Field number, wire type, and the bytes of a length-delimited field (empty for the others)."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def objections(data: bytes) -> str | None:
    """Why a graph must not be opened, in a few words; None where it may be.

    Nested graphs, functions, sparse tensors and training parts are refused as a whole: a delta's
    graph has none, and each would be one more place to look.
    """
    try:
        return _in_model(memoryview(data))
    except (ValueError, IndexError, UnicodeDecodeError):
        return "is not an ONNX file"


def _in_model(model: memoryview) -> str | None:
    found_graph = False
    for number, _, payload in _fields(model):
        if number == 7:
            found_graph = True
            if reason := _in_graph(payload):
                return reason
        elif number in (20, 25):
            return "holds functions or training parts"
    return None if found_graph else "is not an ONNX file"


def _in_graph(graph: memoryview) -> str | None:
    for number, _, payload in _fields(graph):
        reason = None
        if number == 1:
            reason = _in_node(payload)
        elif number == 5:
            reason = _in_tensor(payload)
        elif number == 15:
            reason = "holds a sparse tensor"
        if reason:
            return reason
    return None


def _in_node(node: memoryview) -> str | None:
    operator, domain = "", ""
    for number, _, payload in _fields(node):
        if number == 4:
            operator = str(payload, "utf-8")
        elif number == 7:
            domain = str(payload, "utf-8")
        elif number == 5 and (reason := _in_attribute(payload)):
            return reason
    if domain in _STANDARD_DOMAINS or (domain == _OWN_DOMAIN and operator in OWN_OPERATORS):
        return None
    return f"holds the operator {domain}::{operator}, which no adapter needs"


def _in_attribute(attribute: memoryview) -> str | None:
    for number, _, payload in _fields(attribute):
        if number in (5, 10):
            if reason := _in_tensor(payload):
                return reason
        elif number in (6, 11, 22, 23):
            return "holds a nested graph or a sparse tensor"
    return None


def _in_tensor(tensor: memoryview) -> str | None:
    """Both fields are looked for by number alone: their mere presence is enough."""
    for number, _, _ in _fields(tensor):
        if number in (13, 14):
            return "keeps weights in another file (external data)"
    return None


def _fields(message: memoryview) -> Iterator[_Field]:
    """The fields of one protobuf message; ValueError where it is none."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        start = position
        if wire == _VARINT:
            _, position = _varint(message, position)
        elif wire == _FIXED64:
            position += 8
        elif wire == _FIXED32:
            position += 4
        elif wire == _LENGTH:
            size, start = _varint(message, position)
            position = start + size
        else:
            raise ValueError(f"wire type {wire}")
        if not 0 < number < 1 << 29 or position > end:
            raise ValueError("cut short, or no protobuf")
        yield number, wire, message[start:position] if wire == _LENGTH else message[:0]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")
