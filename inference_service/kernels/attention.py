"""Attention with a paged KV cache: the layout of cache and batch, and the torch reference."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention


MASKED_ROWS = 256
"""Query rows per mask when a prompt is continued; limits the size of the mask with a long context."""

HostInts = npt.NDArray[np.int32]


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
    """

    slot_mapping: torch.Tensor
    page_table: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    host_query_start: HostInts
    host_context_lens: HostInts
    max_query_len: int
    max_context_len: int

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
    out = torch.empty_like(q)
    page_size = k_cache.shape[1]
    # Sequences with one new token are batched with others of similar length: padding at most doubles the work.
    query_start: list[int] = meta.host_query_start.tolist()
    context_lens: list[int] = meta.host_context_lens.tolist()
    decoding: dict[int, list[int]] = defaultdict(list)
    for s, context in enumerate(context_lens):
        start, end = query_start[s], query_start[s + 1]
        if end - start == 1:
            decoding[(-(-context // page_size)).bit_length()].append(s)
        else:
            pages = meta.page_table[s : s + 1, : -(-context // page_size)]
            k, v = (_gather(cache, pages)[0, :context] for cache in (k_cache, v_cache))
            out[start:end] = _attend_prefill(q[start:end], k, v, scale)
    for members in decoding.values():
        rows = torch.tensor([query_start[s] for s in members], device=q.device)
        contexts = [context_lens[s] for s in members]
        pages = meta.page_table[members, : -(-max(contexts) // page_size)]
        k, v = _gather(k_cache, pages), _gather(v_cache, pages)
        out[rows] = _attend_decode(q[rows], k, v, contexts, scale)
    return out


def _gather(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """The slots of pages [S, P] in order: [S, P * page_size, Hkv, D]."""
    # index_select copies whole pages; indexing with a tensor was ten times slower on a CPU (torch 2.13).
    picked = cache.index_select(0, pages.flatten())
    return picked.view(pages.shape[0], -1, *cache.shape[2:])


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
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, contexts: list[int], scale: float
) -> torch.Tensor:
    """One token of each of B sequences: q [B, Hq, D], k and v [B, padded, Hkv, D] -> [B, Hq, D].

    Changes `k` and `v`, which are copies, after the end of each context. The query heads that share a key head are the
    query rows of one attention, so that keys are not repeated.
    """
    batch, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    lengths = torch.tensor(contexts, device=q.device)
    valid = torch.arange(k.shape[1], device=q.device) < lengths[:, None]
    # Slots after a context may have values of another sequence: a NaN would pass the mask.
    shortest = min(contexts)
    for gathered in (k, v):
        gathered[:, shortest:].masked_fill_(~valid[:, shortest:, None, None], 0)
    attended = scaled_dot_product_attention(
        q.view(batch, num_kv_heads, num_heads // num_kv_heads, head_dim),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=valid[:, None, None, :],
        scale=scale,
    )
    return attended.reshape(batch, num_heads, head_dim)
