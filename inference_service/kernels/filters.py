"""Which tokens min-p, top-k and top-p leave, as the minimum logit of each row: the torch reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lowest_kept(logits: Tensor, log_min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """A logit that exactly those tokens reach that pass min-p, top-k and top-p, in this order; ties stay together.

    Args:
        logits: [D, V] float32, contiguous.
        log_min_p: [D] float32: minimum logit relative to the maximum; minus infinity = off.
        top_k: [D] int64, at least 1; V = off.
        top_p: [D] float32; 1 = off.

    Returns:
        [D, 1] float32. The most likely token always reaches it.
    """
    minimum = logits.amax(dim=-1, keepdim=True) + log_min_p.unsqueeze(-1)
    values = logits.topk(logits.shape[1], dim=-1).values
    return lowest_of_sorted(values, minimum, top_k, top_p)


def lowest_of_sorted(
    values: Tensor, minimum: Tensor, top_k: Tensor, top_p: Tensor, total: Tensor | None = None
) -> Tensor:
    """The minimum logit [N, 1] that passes min-p, top-k and top-p.

    Args:
        values: [N, K] in descending order: the most likely tokens, at least those that may pass.
        minimum: [N, 1] that of min-p.
        top_k: [N].
        top_p: [N].
        total: [N, 1] float64: the mass of all tokens from which `top_p` selects, relative to the first; NaN = those of
            `values` that pass the other filters.
    """
    ranks = torch.arange(values.shape[1], device=values.device)
    kept = (values >= minimum) & (ranks < top_k.unsqueeze(-1))
    weights = (values - values[:, :1]).exp().masked_fill_(~kept, 0.0).double()
    mass = weights.cumsum(dim=-1)
    total = mass[:, -1:] if total is None else torch.where(total.isnan(), mass[:, -1:], total)
    limit = top_p.double().unsqueeze(-1)
    # A token stays if those before it have not reached top_p; 1 is off, regardless of rounding.
    kept &= (mass - weights < limit * total) | (limit >= 1)
    kept.select(1, 0).fill_(True)
    return values.masked_fill(~kept, math.inf).amin(-1, keepdim=True)
