"""Linear maps on a CPU in 8-bit integers: a scale per row of the weight, and one per row of the input.

A row of the input is quantised by its own largest value, never by that of its neighbours, and sums of integers are
exact: an answer does not depend on its batch. The product is that of oneDNN with weights packed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_service.kernels.layers import DenseWeight


_onednn = torch.ops.onednn  # without a public name; the quantiser of torch calls these operations
_BATCH_ROWS = 256
_MAXIMUM = 127
_ZERO_POINT = 128
"""Inputs are unsigned for the instructions of the processor."""
_SMALLEST = 1e-30
"""In place of the scale of a row of zeros."""


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight in 8-bit integers.

    Attributes:
        packed: [out, in], opaque: only oneDNN reads it.
        scales: [out] float32; a row of the weight is its integers times its scale.
        zero_points: [out] int32, all zero.
        bias: [out] float32, if there is one.
        values: Number of weights.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    bias: torch.Tensor | None
    values: int

    @classmethod
    def of(cls, dense: DenseWeight) -> Int8Weight:
        """Quantises a finite weight, to the nearest of 255 values per row; the dense one is not needed afterwards."""
        weight, bias = dense.weight.detach(), dense.bias
        scales = weight.abs().amax(1).float().div_(_MAXIMUM).clamp_(min=_SMALLEST)
        integers = (weight.float() / scales[:, None]).round_().to(torch.int8)
        return cls(
            packed=_onednn.qlinear_prepack(integers, [_BATCH_ROWS, weight.shape[1]]),
            scales=scales,
            zero_points=torch.zeros(len(weight), dtype=torch.int32),
            bias=None if bias is None else bias.detach().float(),
            values=weight.numel(),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and bias, without the padding of the layout."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.values + self.scales.nbytes + self.zero_points.nbytes + bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out] in the dtype of `x`; a row that is not finite gives one that is not."""
        rows = x.reshape(-1, x.shape[-1]).float()
        # Several times faster than the norm of many rows (torch 2.13).
        scales = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        scales = scales.div_(_MAXIMUM).clamp_(min=_SMALLEST)
        # Conversion cuts off, so this rounds: all values are positive.
        integers = (rows / scales).add_(_ZERO_POINT + 0.5).to(torch.uint8)
        out: torch.Tensor = _onednn.qlinear_pointwise(
            *(integers, 1.0, _ZERO_POINT, self.packed, self.scales, self.zero_points, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        out = out.mul_(scales)
        if self.bias is not None:
            out = out.add_(self.bias)
        return out.to(x.dtype).reshape(*x.shape[:-1], len(self.scales))


def computes_int8() -> bool:
    """Whether this processor multiplies 8-bit integers exactly.

    Without the instructions for it (VNNI), oneDNN adds pairs of products in 16 bits, which saturate; it is not faster
    then either.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    inputs = 64
    integers = torch.full((16, inputs), _MAXIMUM, dtype=torch.int8)
    try:
        out = _onednn.qlinear_pointwise(
            *(torch.full((1, inputs), 255, dtype=torch.uint8), 1.0, _ZERO_POINT),
            _onednn.qlinear_prepack(integers, [_BATCH_ROWS, inputs]),
            *(torch.ones(16), torch.zeros(16, dtype=torch.int32), None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
    except RuntimeError:
        return False
    return bool((out == _MAXIMUM * _MAXIMUM * inputs).all())
