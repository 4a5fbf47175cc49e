"""The Triton kernel of `kernels.heads`: norms, rotation and the write into the pages of a layer, in one launch.

It rounds where the reference does; arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_service.kernels.heads import HeadNorms, Rotation


_VALUES = 1024
"""Values of a program: as many heads of one token."""


@triton.jit
def weights(q_weight, k_weight, columns, is_query, inside):
    """The weights of the norm by head and column."""
    of_query = tl.load(q_weight + columns, mask=inside & is_query, other=0.0)
    of_key = tl.load(k_weight + columns, mask=inside & ~is_query, other=0.0)
    return tl.where(is_query, of_query, of_key)


@triton.jit
def scaled(values, scale, weight):
    """Values times scale, rounded as the reference does, times weight."""
    rounded = (values.to(tl.float32) * scale).to(values.dtype)
    return (weight.to(tl.float32) * rounded.to(tl.float32)).to(values.dtype)


# Where the slots lie within what the host sends changes from step to step.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def rotate_and_write_kernel(
    fused, q_weight, k_weight, cos, sin, query_scale, slots, q, k_cache, v_cache,
    token_stride, width, pairs, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, NORM: tl.constexpr, SCALED: tl.constexpr,
    ADJACENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, which are contiguous; `q` is contiguous, and so are the caches."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (head < QUERIES + 2 * KEYS) & (columns < width)
    is_query = head < QUERIES
    turns = inside & (head < QUERIES + KEYS) & (columns < 2 * pairs)
    if ADJACENT:
        pair = columns // 2
        partner = columns ^ 1
        sign = tl.where(columns % 2 == 0, -1.0, 1.0)
    else:
        pair = columns % pairs
        partner = tl.where(columns < pairs, columns + pairs, columns - pairs)
        sign = tl.where(columns < pairs, -1.0, 1.0)
    begin = fused + token * token_stride + head * width
    loaded = tl.load(begin + columns, mask=inside, other=0.0)
    own = loaded
    other = tl.load(begin + partner, mask=turns, other=0.0)
    if NORM:
        wide = loaded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / width + eps)[:, None]
        own = scaled(loaded, scale, weights(q_weight, k_weight, columns, is_query, inside))
        other = scaled(other, scale, weights(q_weight, k_weight, partner, is_query, turns))
    c = tl.load(cos + token * pairs + pair, mask=turns, other=1.0)
    s = tl.load(sin + token * pairs + pair, mask=turns, other=0.0)
    turned = own.to(tl.float32) * c + sign * (other.to(tl.float32) * s)
    result = tl.where(turns, turned.to(loaded.dtype), own)
    query = result
    if SCALED:
        factor = tl.load(query_scale + token).to(loaded.dtype).to(tl.float32)
        query = (result.to(tl.float32) * factor).to(loaded.dtype)
    tl.store(q + token * QUERIES * width + head * width + columns, query, mask=inside & is_query)
    place = tl.load(slots + token) * KEYS * width + columns
    is_key = inside & (head >= QUERIES) & (head < QUERIES + KEYS)
    tl.store(k_cache + place + (head - QUERIES) * width, result, mask=is_key)
    is_value = inside & (head >= QUERIES + KEYS)
    tl.store(v_cache + place + (head - QUERIES - KEYS) * width, loaded, mask=is_value)


def rotate_and_write(
    heads: torch.Tensor,
    norms: HeadNorms | None,
    rotation: Rotation,
    caches: tuple[torch.Tensor, torch.Tensor],
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """As `kernels.heads.rotate_and_write`."""
    tokens, count, width = heads.shape
    k_cache, v_cache = caches
    kv_heads = k_cache.shape[2]
    queries = count - 2 * kv_heads
    q = torch.empty(tokens, queries, width, dtype=heads.dtype, device=heads.device)
    if not tokens:
        return q
    heads = heads if heads[0].is_contiguous() else heads.contiguous()
    q_weight, k_weight = (heads, heads) if norms is None else (norms.query, norms.key)
    cos, sin, scale = rotation.cos.contiguous(), rotation.sin.contiguous(), rotation.query_scale
    block = triton.next_power_of_2(width)
    rows = max(1, _VALUES // block)
    rotate_and_write_kernel[(tokens, triton.cdiv(count, rows))](
        *(heads, q_weight, k_weight, cos, sin, cos if scale is None else scale, slot_mapping),
        *(q, k_cache, v_cache, heads.stride(0), width, cos.shape[1]),
        1e-6 if norms is None else norms.eps,
        QUERIES=queries,
        KEYS=kv_heads,
        NORM=norms is not None,
        SCALED=scale is not None,
        ADJACENT=rotation.adjacent_pairs,
        ROWS=rows,
        BLOCK=block,
    )
    return q
