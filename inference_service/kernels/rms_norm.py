"""RMS norm (arXiv 1910.07467), alone or with the addition before it: the torch reference.

Statistics are float32 and the weight is applied in the dtype of the values, as in training.
"""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalises the last dimension of `x` [..., n] and scales it by `weight` [n]; the result is like `x`."""
    if x.dtype == torch.float32 == weight.dtype:  # the same operations, with less overhead on a CPU
        return torch.rms_norm(x, weight.shape, weight, eps)
    values = x.float()
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * values.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds `x` [..., n] to the residual stream [..., n] and normalises the sum by `weight` [n].

    Returns:
        (normalised, new residual), both new tensors like `x`.
    """
    residual = residual + x
    return rms_norm(residual, weight, eps), residual
