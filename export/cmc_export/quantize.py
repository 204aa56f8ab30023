"""8-bit weights for the graph: MatMulNBits, symmetric, one float32 scale for each block of a row.

A row `w` of a weight is cut into blocks of `block` inputs; each is stored as
`q = round(w / scale) + 128` with `scale = max|w| / 127`, so that `w ~ (q - 128) * scale`:

    [0.5, -1.27, 0.0]  ->  scale 0.01, q = [178, 1, 128]

Accuracy level 4 lets ONNX Runtime quantise the inputs to 8 bits too and multiply in integers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmc_export.graph import Storage

ZERO = 128
_LARGEST = 127
_ACCURACY_LEVEL = 4  # int8 x int8 in ONNX Runtime's kernels


def block_size(width: int) -> int:
    """The block that divides a row of `width` best: 32, or 16 where that wastes less."""
    return 16 if -width % 16 < -width % 32 else 32


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


class QuantizedLinear(nn.Module):
    """`x @ weight.T` by MatMulNBits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.block = block_size(self.inputs)
        codes, scales = quantize(weight, self.block)
        self.codes, self.scales = nn.Buffer(codes), nn.Buffer(scales)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.codes, self.scales),
            attrs={
                "K": self.inputs,
                "N": self.outputs,
                "bits": 8,
                "block_size": self.block,
                "accuracy_level": _ACCURACY_LEVEL,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.outputs),
            version=1,
        )
        return y


class QuantizedTable(QuantizedLinear):
    """Embedding and output head over one matrix of (V, width): its codes are stored once."""

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, width): the looked-up rows alone are turned back into numbers."""
        flat = ids.flatten()
        codes, scales = self.codes.index_select(0, flat), self.scales.index_select(0, flat)
        return dequantize(codes, scales, self.inputs).reshape(*ids.shape, self.inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, K, width) -> (B, K, V)."""
        return self(hidden)


INT8 = Storage(QuantizedLinear, QuantizedTable)
