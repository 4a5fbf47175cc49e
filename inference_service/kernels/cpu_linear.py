"""Linear maps on a CPU whose weight is packed once into the blocked layout of oneDNN's matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_service.kernels.layers import DenseWeight


_mkldnn = torch.ops.mkldnn  # without a public name; the compiler of torch calls these operations
_BATCH_ROWS = 256
"""Rows for which oneDNN chooses the layout; with it, few rows are as fast as with a layout of their own."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in oneDNN's layout, and its bias.

    Attributes:
        packed: [out, in], opaque: only oneDNN reads it.
        bias: [out], if there is one.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, dense: DenseWeight) -> PackedWeight:
        """Packs a weight that `can_pack`; the dense one is not needed afterwards."""
        weight, bias = dense.weight.detach(), dense.bias
        packed = _mkldnn._reorder_linear_weight(weight, _BATCH_ROWS)  # noqa: SLF001
        return cls(packed, None if bias is None else bias.detach())

    @property
    def nbytes(self) -> int:
        """Bytes of weight, with the padding of its layout, and bias."""
        packed: int = _mkldnn._nbytes(self.packed)  # noqa: SLF001
        return packed + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        run = _mkldnn._linear_pointwise  # noqa: SLF001
        out: torch.Tensor = run(x, self.packed, self.bias, "none", [], "")
        return out


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of a dtype, and this processor computes with them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return dtype == torch.float32
