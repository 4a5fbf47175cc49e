"""A linear map of few rows, whose cost is reading the weight once: the torch reference, and the form of a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import linear


MAX_ROWS: Final = 16
"""Rows for which the kernels are written."""
SPLITS: Final = (1, 2, 4, 8, 16)
"""Parts into which a row of the weight may be divided."""


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, splits: int
) -> torch.Tensor:
    """The map x -> x W^T + b for few rows; the order of its sums does not depend on their number.

    Args:
        x: [M, in], M at most `MAX_ROWS`.
        weight: [out, in], contiguous, of the dtype of `x`.
        bias: [out], if there is one.
        splits: Parts of the inner dimension that are computed at the same time, a value of `SPLITS`; the reference
            has none.

    Returns:
        [M, out].
    """
    del splits
    return linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class SkinnyWeight:
    """A weight that is multiplied by a kernel of its own where the input has few rows.

    Attributes:
        weight: [out, in], contiguous.
        bias: [out], if there is one.
        run: An implementation of `skinny_linear`.
        splits: As it takes them.
        max_rows: Rows up to which it is used; the others are multiplied by torch.
        is_shared: The weight belongs to another module, which counts it.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, int], torch.Tensor]
    splits: int
    max_rows: int
    is_shared: bool

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias, unless they are those of another module."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return 0 if self.is_shared else self.weight.nbytes + bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        rows = x.reshape(-1, x.shape[-1])
        if not 0 < len(rows) <= self.max_rows:
            return linear(x, self.weight, self.bias)
        out = self.run(rows, self.weight, self.bias, self.splits)
        return out.reshape(*x.shape[:-1], len(self.weight))
