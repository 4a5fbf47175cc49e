"""Rotary position embedding (arXiv 2104.09864) and the angles of M-RoPE: the torch reference."""

from __future__ import annotations

import torch


def inverse_frequencies(dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """[dim / 2] float32: theta^(-2i / dim), computed on the CPU so that it is the same for every device."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return (1.0 / theta**exponents).to(device)


def mrope_cos_sin(
    positions: torch.Tensor, frequencies: torch.Tensor, axes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles of M-RoPE.

    Args:
        positions: [A, T] int64, the position of every token on each axis.
        frequencies: [F] float32, radians per position; or [T, F], different for every token.
        axes: [F] int64, the axis of each frequency.

    Returns:
        Cosines and sines, [T, F] float32 each.
    """
    angles = positions.float()[axes].T * frequencies
    return angles.cos(), angles.sin()


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, adjacent_pairs: bool = False
) -> torch.Tensor:
    """Rotates the first 2F elements of every head of `x`, pair i by angle i; the others are unchanged.

    Args:
        x: [T, heads, D], D at least 2F.
        cos: [T, F] float32.
        sin: [T, F] float32.
        adjacent_pairs: Pair i is elements 2i and 2i + 1 (GLM); else elements i and F + i (GPT-NeoX).

    Returns:
        A new tensor like `x`; the arithmetic is float32.
    """
    width = 2 * cos.shape[1]
    turned, rest = x[..., :width].float(), x[..., width:]
    rotated = torch.empty(turned.shape, device=x.device)
    first, second = _pairs(turned, adjacent=adjacent_pairs)
    new_first, new_second = _pairs(rotated, adjacent=adjacent_pairs)
    cos, sin = cos[:, None, :], sin[:, None, :]
    # Into place, as the parts would be copied otherwise.
    torch.mul(first, cos, out=new_first).sub_(second * sin)
    torch.mul(second, cos, out=new_second).add_(first * sin)
    rotated = rotated.to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def _pairs(x: torch.Tensor, *, adjacent: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and the second elements of the pairs."""
    if adjacent:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
