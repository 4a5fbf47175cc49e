"""Rotary position embedding (arXiv 2104.09864) in the half-split layout: the torch reference.

Owns the rotation and the angles of M-RoPE. Must not know models.
"""

from __future__ import annotations

import torch


def inverse_frequencies(dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """[dim / 2] float32: theta^(-2i / dim), computed on the CPU so that every device has the same."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return (1.0 / theta**exponents).to(device)


def mrope_cos_sin(
    positions: torch.Tensor, frequencies: torch.Tensor, axes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles of M-RoPE.

    Args:
        positions: [A, T] int64, a position on each axis for every token.
        frequencies: [F] float32, radians per position; or [T, F], for every token its own.
        axes: [F] int64, the axis whose position turns each frequency.

    Returns:
        Cosines and sines, [T, F] float32 each.
    """
    angles = positions.float()[axes].T * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `x` [T, heads, 2F]: element i of the first half with element i of the second by angle i.

    Args:
        x: [T, heads, 2F].
        cos: [T, F] float32.
        sin: [T, F] float32.

    Returns:
        A new tensor like `x`; the arithmetic is float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)
