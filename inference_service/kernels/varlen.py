"""Attention within segments of different lengths, one after the other: the torch reference, and torch's kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Spans:
    """Where S segments begin and end.

    Attributes:
        query_start: [S + 1] int32, on the device: queries `query_start[s]` up to `query_start[s + 1]` are of segment s.
        key_start: [S + 1] int32, on the device: the same for keys and values.
        max_queries: Maximum number of queries of a segment.
        max_keys: Maximum number of keys of a segment.
    """

    query_start: Tensor
    key_start: Tensor
    max_queries: int
    max_keys: int


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """Attention of every query to all keys of its segment, without a mask; waits for the device.

    Args:
        q: [N, H, D].
        k: [M, H, D].
        v: [M, H, D].
        spans: The segments of all N queries and M keys.

    Returns:
        [N, H, D].
    """
    out = torch.empty_like(q)
    asking, asked = spans.query_start.tolist(), spans.key_start.tolist()
    for s in range(len(asking) - 1):
        rows, keys = slice(asking[s], asking[s + 1]), slice(asked[s], asked[s + 1])
        heads = (q[rows].transpose(0, 1), k[keys].transpose(0, 1), v[keys].transpose(0, 1))
        attended = scaled_dot_product_attention(heads[0], heads[1], heads[2])
        out[rows] = attended.transpose(0, 1)
    return out


def flash_varlen_attention(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """As `varlen_attention`, in one launch on a GPU; heads of a multiple of 8, in 16 bit."""
    # Here and not above: it imports torch's library of custom operations.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    # These arguments are the same in all versions since 2.10; later ones differ.
    out = varlen_attn(
        *(q, k, v, spans.query_start, spans.key_start, spans.max_queries, spans.max_keys)
    )
    assert isinstance(out, Tensor), "no further results are asked for"
    return out
