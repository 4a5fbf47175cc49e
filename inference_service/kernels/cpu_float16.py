"""Linear maps on a CPU in float32 whose weight is held in 16 bits, as checkpoints have it: half of the memory to read.

A weight that was stored as bfloat16 or float16 is, times a power of two, a matrix of float16. FBGEMM's product widens
it in registers and multiplies and adds in float32. Each row of the input is summed in the same order whatever is
beside it, so that it does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any, Final

import torch

from inference_service.kernels.layers import DenseWeight


_fbgemm = (
    torch.ops.quantized
)  # without a public name; the dynamic quantiser of torch calls these operations
_LARGEST: Final = 65504.0
"""Of float16."""
_HALF_ULP: Final = 2.0**-24
"""Relative error of rounding to float32."""
_ROWS: Final = 8192
"""Rows of a part: packing goes column by column, which is slow where they do not fit into a cache."""


@dataclass(frozen=True, slots=True)
class Float16Weight:
    """A weight in 16 bits for products in float32.

    Attributes:
        parts: The rows of the weight times 1 / `factor`, with their biases; opaque: only FBGEMM reads them.
        factor: Factor of the inputs, a power of two.
        values: Number of weights.
        outputs: Number of biases, or 0.
    """

    parts: tuple[Any, ...]
    factor: float
    values: int
    outputs: int

    @classmethod
    def of(cls, dense: DenseWeight) -> Float16Weight | None:
        """Packs a float32 weight; the dense one is not needed afterwards.

        Returns:
            None if the weight has more than 16 bits: if the error of a value would exceed that of rounding the largest
            one of its row to float32.
        """
        weight, bias = dense.weight.detach(), dense.bias
        largest = float(weight.abs().amax())
        if not math.isfinite(largest):
            return None
        scale = 2.0 ** math.floor(math.log2(_LARGEST / largest)) if largest else 1.0
        biases = [None] if bias is None else torch.split(bias.detach(), _ROWS)
        parts = []
        for index, rows in enumerate(torch.split(weight, _ROWS)):
            scaled = rows * scale
            limits = scaled.abs().amax(1) * _HALF_ULP
            if ((scaled.half().float() - scaled).abs_().amax(1) > limits).any():
                return None
            parts.append(_fbgemm.linear_prepack_fp16(scaled, biases[index % len(biases)]))
        outputs = 0 if bias is None else len(bias)
        return cls(tuple(parts), 1 / scale, weight.numel(), outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias, without the padding of the layout."""
        return 2 * self.values + 4 * self.outputs

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], float32."""
        rows = x.reshape(-1, x.shape[-1]) * self.factor
        products = [_fbgemm.linear_dynamic_fp16(rows, part) for part in self.parts]
        out: torch.Tensor = products[0] if len(products) == 1 else torch.cat(products, -1)
        return out.view(*x.shape[:-1], out.shape[-1])


def holds_float16() -> bool:
    """Whether this build of torch has such products, and this processor computes them."""
    weight = torch.eye(16)
    try:
        packed = _fbgemm.linear_prepack_fp16(weight, None)
        found: torch.Tensor = _fbgemm.linear_dynamic_fp16(weight, packed)
    except (AttributeError, RuntimeError):
        return False
    return found.equal(weight)
