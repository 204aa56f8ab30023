"""8-bit weights for the graph: MatMulNBits, symmetric, one float32 scale for each block of a row.

A row `w` of a weight is cut into blocks of `block` inputs; each is stored as
`q = round(w / scale) + 128` with `scale = max|w| / 127`, so that `w ~ (q - 128) * scale`:

    [0.5, -1.27, 0.0]  ->  scale 0.01, q = [178, 1, 128]

Accuracy level 4 lets ONNX Runtime quantise the inputs to 8 bits too and multiply in integers.

Four bits were tried (blocks of 64, the best of 26 scales for each): a delta of 192 wide and 4,096
tokens came to 1.6 MB in place of 2.9 and its step to 144 us in place of 185, but the tokens that it
makes its template say were others in 2.5 % of positions (0.0058 nats; 8 bits: 0.2 %, 0.00007). Most
of that is the table's, which is most of the gain as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmc_export.graph import Weight
from cmc_export.onnx_nodes import OWN, Nodes

ZERO = 128
_LARGEST = 127
_ACCURACY_LEVEL = 4  # int8 x int8 in ONNX Runtime's kernels


def block_size(width: int) -> int:
    """The largest block that fills up a row of `width` by a sixteenth at most: 64, 32 or 16.

    Larger blocks are faster: on one core of a Sapphire Rapids a matrix of 256 x 688 took 14.0 us in
    blocks of 16, 10.9 in 32 and 9.3 in 64, the filling included.
    """
    return next((block for block in (64, 32) if -width % block <= width // 16), 16)


def quantize(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(out, in) float32 -> (out, blocks, block) uint8 and scales (out, blocks) float32.

    A row that is no whole number of blocks is filled up with zeros (stored as 128).
    """
    padded = nn.functional.pad(weight.float(), (0, -weight.shape[1] % block))
    blocks = padded.reshape(weight.shape[0], -1, block)
    scales = blocks.abs().amax(-1) / _LARGEST
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = torch.round(blocks / safe[..., None]) + ZERO
    return codes.to(torch.uint8), scales


def dequantize(codes: Tensor, scales: Tensor, width: int) -> Tensor:
    """The inverse of `quantize` up to rounding: (..., blocks, block) -> (..., width) float32."""
    values = (codes.to(torch.float32) - ZERO) * scales[..., None]
    return values.flatten(-2)[..., :width]


@dataclass(frozen=True)
class Quantized:
    """See graph.Storage: codes and scales, hidden states in float32."""

    dtype: type[np.floating[Any]] = np.float32

    def linear(self, nodes: Nodes, name: str, weight: Weight, x: str) -> str:
        """See graph.Storage."""
        return self.table(nodes, name, weight).logits(nodes, x)

    def table(self, nodes: Nodes, name: str, weight: Weight) -> QuantizedTable:
        """See graph.Storage; the codes are stored once for both uses."""
        outputs, inputs = weight.shape
        block = block_size(inputs)
        codes, scales = quantize(torch.from_numpy(weight), block)
        return QuantizedTable(
            nodes.weight(f"{name}_codes", codes.numpy()),
            nodes.weight(f"{name}_scales", scales.numpy()),
            outputs,
            inputs,
            block,
        )


@dataclass(frozen=True)
class QuantizedTable:
    """One matrix of (outputs, inputs) by the names of its codes and scales."""

    codes: str
    scales: str
    outputs: int
    inputs: int
    block: int

    def embed(self, nodes: Nodes, ids: str) -> str:
        """(B, T) -> (B, T, width): the looked-up rows alone are turned back into numbers."""
        scales = nodes.add("Unsqueeze", self.scales, nodes.integers(-1))
        blocks = nodes.add(
            "GatherBlockQuantized",
            *(self.codes, ids, scales),
            domain=OWN,
            bits=8,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=2,
        )
        row = nodes.add("Reshape", blocks, nodes.integers(0, 0, -1))
        if self.inputs % self.block == 0:
            return row
        ends = (nodes.integers(0), nodes.integers(self.inputs), nodes.integers(-1))
        return nodes.add("Slice", row, *ends)

    def logits(self, nodes: Nodes, hidden: str) -> str:
        """(B, K, width) -> (B, K, V)."""
        return nodes.add(
            "MatMulNBits",
            *(hidden, self.codes, self.scales),
            domain=OWN,
            K=self.inputs,
            N=self.outputs,
            bits=8,
            block_size=self.block,
            accuracy_level=_ACCURACY_LEVEL,
        )


INT8 = Quantized()
