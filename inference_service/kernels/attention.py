"""Attention with a paged KV cache: the layout of cache and batch, and the torch reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention


MASKED_ROWS = 256
"""Query rows per mask when a prompt is continued; limits the size of the mask with a long context."""

HostInts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """B sequences with one new token each and contexts of similar length, which the torch reference computes together.

    Attributes:
        rows: [B] int64: their rows in the batch.
        pages: [B * P] int32: their pages, padded with page 0.
        context_len: The longest context; at most P * page_size.
        valid: [B, context_len]: which slots a sequence has; None if all contexts are equal.
        shortest: The shortest context.
    """

    rows: torch.Tensor
    pages: torch.Tensor
    context_len: int
    valid: torch.Tensor | None
    shortest: int


@dataclass(slots=True)
class AttentionMetadata:
    """The places in the cache of the T new tokens of a step's S sequences.

    Sequences are concatenated in the batch. The tensors are views of buffers that a later step overwrites, so they are
    valid for one step only. Some integers are also on the host, so that a kernel can be launched, and the reference can
    loop, without waiting for the device.

    Attributes:
        slot_mapping: [T] int64, on the device: page * page_size + offset at which each new token is written.
        page_table: [S, P] int32, on the device, rows may be strided: pages of each sequence in order, padded with 0.
        query_start: [S + 1] int32, on the device: rows `query_start[s]` up to `query_start[s + 1]` of the batch are
            sequence s; every sequence has at least one row.
        context_lens: [S] int32, on the device: tokens of each sequence in the cache after this step, including
            the new ones.
        host_query_start: `query_start` on the host.
        host_context_lens: `context_lens` on the host.
        max_query_len: Maximum number of new tokens of a sequence.
        max_context_len: Maximum number of tokens of a sequence in the cache.
        decode_groups: Computed by the torch reference in the first layer, for the others.
    """

    slot_mapping: torch.Tensor
    page_table: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    host_query_start: HostInts
    host_context_lens: HostInts
    max_query_len: int
    max_context_len: int
    decode_groups: Sequence[DecodeGroup] | None = None

    def to(self, device: torch.device) -> AttentionMetadata:
        """A copy for layers on another device."""
        return AttentionMetadata(
            slot_mapping=self.slot_mapping.to(device),
            page_table=self.page_table.to(device),
            query_start=self.query_start.to(device),
            context_lens=self.context_lens.to(device),
            host_query_start=self.host_query_start,
            host_context_lens=self.host_context_lens,
            max_query_len=self.max_query_len,
            max_context_len=self.max_context_len,
        )


def new_kv_cache(
    num_layers: int,
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """A zeroed cache [num_layers, 2 (keys, values), num_pages, page_size, num_kv_heads, head_dim]."""
    shape = (num_layers, 2, num_pages, page_size, num_kv_heads, head_dim)
    return torch.zeros(shape, dtype=dtype, device=device)


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Writes new keys and values of one layer into their slots, in place.

    Args:
        k: [T, Hkv, D].
        v: [T, Hkv, D].
        k_cache: [pages, page_size, Hkv, D], of the dtype of `k`.
        v_cache: The same for values.
        slot_mapping: [T] int64, distinct.
    """
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slot_mapping, k)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slot_mapping, v)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    meta: AttentionMetadata,
    scale: float,
) -> torch.Tensor:
    """Causal attention of every new token to its sequence in the cache.

    The last query row of a sequence is its newest token. Sequences of any number of rows may be mixed; the others
    affect the result of a sequence only by rounding.

    Args:
        q: [T, Hq, D]; Hq is a multiple of Hkv.
        k_cache: [pages, page_size, Hkv, D], already holding the new tokens.
        v_cache: The same for values.
        meta: The places of the tokens.
        scale: Factor of the scores.

    Returns:
        [T, Hq, D], of the dtype of `q`.
    """
    if meta.decode_groups is None:
        meta.decode_groups = _decode_groups(meta, k_cache.shape[1])
    if meta.max_query_len == 1 and len(meta.decode_groups) == 1:
        return _attend_decode(q, k_cache, v_cache, meta.decode_groups[0], scale)
    out = torch.empty_like(q)
    for group in meta.decode_groups:
        out[group.rows] = _attend_decode(q[group.rows], k_cache, v_cache, group, scale)
    if meta.max_query_len > 1:
        _prefill(q, k_cache, v_cache, meta, scale, out=out)
    return out


def _decode_groups(meta: AttentionMetadata, page_size: int) -> list[DecodeGroup]:
    """Groups the sequences with one new token: padding at most doubles the work of a group."""
    lengths = np.diff(meta.host_query_start)
    members: dict[int, list[int]] = defaultdict(list)
    for s in np.flatnonzero(lengths == 1).tolist():
        members[(-(-int(meta.host_context_lens[s]) // page_size)).bit_length()].append(s)
    return [_decode_group(meta, group, page_size) for group in members.values()]


def _decode_group(meta: AttentionMetadata, members: list[int], page_size: int) -> DecodeGroup:
    contexts = meta.host_context_lens[members]
    longest, shortest = int(contexts.max()), int(contexts.min())
    device = meta.page_table.device
    valid = None
    if shortest < longest:
        lengths = torch.from_numpy(contexts).to(device)
        valid = torch.arange(longest, device=device) < lengths[:, None]
    return DecodeGroup(
        rows=torch.from_numpy(meta.host_query_start[members].astype(np.int64)).to(device),
        pages=meta.page_table[members, : -(-longest // page_size)].flatten(),
        context_len=longest,
        valid=valid,
        shortest=shortest,
    )


def _prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    meta: AttentionMetadata,
    scale: float,
    *,
    out: torch.Tensor,
) -> None:
    """Computes the rows of `out` that belong to sequences with several new tokens, one sequence after the other."""
    starts = meta.host_query_start.tolist()
    for s, context in enumerate(meta.host_context_lens.tolist()):
        rows = slice(starts[s], starts[s + 1])
        if rows.stop - rows.start == 1:
            continue
        pages = meta.page_table[s, : -(-context // k_cache.shape[1])]
        k, v = (_gather(cache, pages, 1)[0, :context] for cache in (k_cache, v_cache))
        out[rows] = _attend_prefill(q[rows], k, v, scale)


def _gather(cache: torch.Tensor, pages: torch.Tensor, num_seqs: int) -> torch.Tensor:
    """The slots of pages [S * P] in order: [S, P * page_size, Hkv, D]."""
    # index_select copies whole pages; indexing with a tensor was ten times slower on a CPU (torch 2.13).
    return cache.index_select(0, pages).view(num_seqs, -1, *cache.shape[2:])


def _attend_prefill(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> torch.Tensor:
    """The last n of c tokens of one sequence: q [n, Hq, D], k and v [c, Hkv, D] -> [n, Hq, D]."""
    n, past = q.shape[0], k.shape[0] - q.shape[0]
    if past == 0:
        return _attend(q, k, v, None, scale)
    blocks = []
    for first in range(0, n, MASKED_ROWS):
        block = q[first : first + MASKED_ROWS]
        seen = past + first + block.shape[0]
        mask = torch.ones(block.shape[0], seen, dtype=torch.bool, device=q.device)
        blocks.append(_attend(block, k[:seen], v[:seen], mask.tril(past + first), scale))
    return torch.cat(blocks)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention of rows [n, Hq, D] to keys and values [c, Hkv, D]; without mask, row i attends to keys 0 to i."""
    attended = scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended.squeeze(0).transpose(0, 1)


def _attend_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    group: DecodeGroup,
    scale: float,
) -> torch.Tensor:
    """One token of each of the B sequences of a group: q [B, Hq, D] -> [B, Hq, D].

    The query heads that share a key head are the query rows of one attention, so that keys are not repeated.
    """
    batch, num_heads, head_dim = q.shape
    k, v = (
        _gather(cache, group.pages, batch)[:, : group.context_len] for cache in (k_cache, v_cache)
    )
    if group.valid is not None:
        # Slots after a context may have values of another sequence: a NaN would pass the mask.
        stale = ~group.valid[:, group.shortest :, None, None]
        for gathered in (k, v):
            gathered[:, group.shortest :].masked_fill_(stale, 0)
    attended = scaled_dot_product_attention(
        q.view(batch, k.shape[2], -1, head_dim),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if group.valid is None else group.valid[:, None, None, :],
        scale=scale,
    )
    return attended.reshape(batch, num_heads, head_dim)
