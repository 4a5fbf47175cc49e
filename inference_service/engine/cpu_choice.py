"""Finds the largest of many logits on a CPU, with the results of `argmax` over all of them.

The maximum of a chunk is computed by vector instructions, the place of a maximum one value after the other (torch
2.13). Noise costs two logarithms, so only the tokens that can win with theirs get it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_service.kernels.choice import bits_below, gumbel_of, noise_bits


MANY: Final = 4096
"""Logits per row from which this is worth its fixed cost."""
_CHUNK: Final = 256
_LARGE_NOISE: Final = 6.0
"""One token in 400 gets more."""
_LARGE_BITS: Final = bits_below(_LARGE_NOISE)
_FEW: Final = 8
"""One token in so many may be a candidate; with more, all get noise."""


def argmax(logits: Tensor) -> Tensor:
    """The place of the first maximum of each row [R, V]: [R] int64; a NaN is a maximum."""
    rows, width = logits.shape
    if width < MANY:
        return logits.argmax(dim=-1)
    count = width // _CHUNK
    whole = logits[:, : count * _CHUNK].view(rows, count, _CHUNK).amax(dim=-1)
    rest = logits[:, count * _CHUNK :]
    maxima = torch.cat((whole, rest.amax(dim=-1, keepdim=True)), -1) if rest.shape[1] else whole
    first = maxima.argmax(dim=-1, keepdim=True) * _CHUNK
    # Beyond the last logit, it is repeated: the first maximum is the same.
    places = (first + torch.arange(_CHUNK)).clamp_(max=width - 1)
    within = logits.gather(1, places).argmax(dim=-1, keepdim=True)
    return (first + within).squeeze(-1)


def argmax_with_noise(logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The place of the maximum of each row after Gumbel noise: [R] int64.

    Args:
        logits: [R, V], R at least 1.
        low: [R] int32, as of `gumbel_noise`.
        high: [R] int32.
    """
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32)
    if logits.shape[1] < MANY:
        bits = noise_bits(low.unsqueeze(-1), high.unsqueeze(-1), token_ids)
        return gumbel_of(bits).add_(logits).argmax(dim=-1)
    # Row by row, because what is between the operations then stays in the cache.
    columns = (logits, low, high, argmax(logits))
    rows = zip(*(torch.split(column, 1) for column in columns), strict=True)
    return torch.cat(
        [_noisy_argmax(row, noise_bits(a, b, token_ids), top) for row, a, b, top in rows]
    )


def _noisy_argmax(row: Tensor, bits: Tensor, top: Tensor) -> Tensor:
    """The place [1] of the maximum of a row [1, V] with the noise of its bits [V]; `top` [1] is that without.

    A token without large noise loses against the most likely one if it would with the largest of the others.
    """
    logits = row.squeeze(0)
    reached = logits.index_select(0, top) + gumbel_of(bits.index_select(0, top))
    may_win = (logits + _LARGE_NOISE < reached).logical_not_().logical_or_(bits < _LARGE_BITS)
    candidates = may_win.nonzero().squeeze(-1)
    if len(candidates) > len(logits) // _FEW:
        return argmax(gumbel_of(bits).add_(logits).unsqueeze(0))
    noisy = gumbel_of(bits.index_select(0, candidates)) + logits.index_select(0, candidates)
    return candidates.index_select(0, noisy.argmax(dim=-1, keepdim=True))
