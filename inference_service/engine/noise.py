"""Noise for sampling that depends only on (seed, choice, position) and the token id, never on generator state."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor


MASK_64: Final = 2**64 - 1
_STEP: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def noise_state(seed: int, choice_index: int) -> int:
    """The part of the key that is the same for all positions: 64 bits of SplitMix64."""
    state = 0
    for number in (seed, choice_index):
        state = (state + number + _STEP) & MASK_64
        state = ((state ^ (state >> 30)) * _FIRST) & MASK_64
        state = ((state ^ (state >> 27)) * _SECOND) & MASK_64
        state ^= state >> 31
    return state


def noise_keys(
    states: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Low and high half of the keys of R (state, position) pairs: [R] each."""
    state = states + positions.astype(np.uint64) + np.uint64(_STEP)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    state ^= state >> np.uint64(31)
    halves = state.view(np.int32).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


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
