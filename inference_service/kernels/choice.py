"""Chooses tokens from logits with noise that depends only on a key and the token id: the torch reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def choose_tokens(
    logits: Tensor,
    minimum: Tensor | None,
    low: Tensor,
    high: Tensor,
    drawn: Tensor | None = None,
) -> Tensor:
    """Draws a token per row from the softmax of those logits that reach the row's minimum.

    Args:
        logits: [D, V] float32, contiguous; undefined afterwards.
        minimum: [D, 1] float32; None = all tokens may be drawn.
        low: [D] int32: the low half of the key of each row.
        high: [D] int32: the high half.
        drawn: [D] int32: 0 = without noise, so that the most likely token is chosen; None = all are drawn.

    Returns:
        [D] int64; of equal maxima the first.
    """
    if minimum is not None:
        logits.masked_fill_(~(logits >= minimum), -math.inf)
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    noise = gumbel_noise(low.unsqueeze(-1), high.unsqueeze(-1), token_ids)
    if drawn is not None:
        noise.masked_fill_(drawn.unsqueeze(-1) == 0, 0.0)
    return noise.add_(logits).argmax(dim=-1)


def gumbel_noise(low: Tensor, high: Tensor, token_ids: Tensor) -> Tensor:
    """Gumbel noise: adding it to logits and taking the maximum samples from their softmax (Gumbel-max).

    Args:
        low: int32: the low half of the key of each token's row.
        high: int32: the high half; both of a shape that broadcasts with `token_ids`.
        token_ids: int64 or int32.

    Returns:
        float32 of the common shape.
    """
    return gumbel_of(noise_bits(low, high, token_ids))


def noise_bits(low: Tensor, high: Tensor, token_ids: Tensor) -> Tensor:
    """The 31 random bits of each token's noise, as int32: the fewer, the larger the noise; see `gumbel_noise`.

    The halves of a key are mixed with the token ids in two rounds of Wellons' `lowbias32`.
    """
    bits = token_ids.int() ^ low
    _lowbias32_(bits)
    bits ^= high
    _lowbias32_(bits)
    return bits.bitwise_and_(0x7FFFFFFF)


def gumbel_of(bits: Tensor) -> Tensor:
    """The noise of bits, float32."""
    # 31 bits to u in (0, 1). Small u, which win, keep their resolution; u = 1 would be infinite noise.
    minus_u = bits.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=-1 + 2.0**-24)
    return minus_u.log1p_().neg_().log_().neg_()


def bits_below(noise: float) -> int:
    """A number of which all bits that give more noise are below; few others are."""
    return round(2**31 * -math.expm1(-math.exp(-noise)) * 1.001) + 1


def _int32(bits: int) -> int:
    """The low 32 bits as a signed integer."""
    return ((bits & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _lowbias32_(bits: Tensor) -> None:
    """Chris Wellons' 32-bit integer hash, in place on int32 with wrapping products; shifts fill with zeros."""
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    bits *= 0x7FEB352D
    bits ^= (bits >> 15).bitwise_and_(0x1FFFF)
    bits *= _int32(0x846CA68B)
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
