"""Triton kernels of paged attention; the reference is `kernels.attention`.

Decode: the keys of a sequence are divided among programs, each of which computes the query heads of one key head, and a
second kernel combines their results (flash decoding). Prefill: one program computes a block of rows of one query head.
What stands behind a context in a page, or behind a sequence in the page table, is never read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_service.kernels.attention import AttentionMetadata


_MIN_ROWS = 16
"""Minimum rows of `tl.dot`."""
_SPLIT_KEYS, _MAX_SPLITS = 512, 32
"""Keys that a program computes at least, and the maximum number of programs for one sequence and key head."""
_BUSY_PROGRAMS = 2048
"""Programs that keep any GPU busy: with so many sequences and heads, keys are divided no further."""
_DECODE_KEYS, _PREFILL_KEYS, _PREFILL_ROWS = 32, 32, 32


@triton.jit
def attend_block(
    q, best, total, acc, k_cache, v_cache, pages, head, first, seen, scale,
    page_size, slot_stride, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: queries [R, WIDTH] and the keys from `first`, of which row r sees `seen[r]`."""
    places = first + tl.arange(0, KEYS)
    there = places < tl.max(seen, axis=0)
    page = tl.load(pages + places // page_size, mask=there, other=0).to(tl.int64)
    slots = (page * page_size + places % page_size) * slot_stride + head * D
    columns = tl.arange(0, WIDTH)
    inside = there[:, None] & (columns < D)[None, :]
    k = tl.load(k_cache + slots[:, None] + columns[None, :], mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    visible = places[None, :] < seen[:, None]
    scores = tl.where(visible, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    # A row that has seen no key yet: without this, its weights would be exp(-inf + inf).
    safe = tl.where(new_best == float("-inf"), 0.0, new_best)
    weights = tl.exp(scores - safe[:, None])
    kept = tl.exp(best - safe)
    v = tl.load(v_cache + slots[:, None] + columns[None, :], mask=inside, other=0.0)
    acc = acc * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_best, total * kept + tl.sum(weights, axis=1), acc


# Triton compiles a variant for every property of an argument that it specialises on (1, a multiple of 16, an aligned
# pointer). What changes from step to step must have none: compiling would stall a server for seconds.
@triton.jit(
    do_not_specialize=["page_stride", "splits"],
    do_not_specialize_on_alignment=["contexts", "query_start"],
)
def decode_kernel(
    q, k_cache, v_cache, pages, contexts, query_start, parts, extremes, scale,
    q_stride, page_stride, page_size, slot_stride, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):  # fmt: skip
    """A part of the keys of one key head for one sequence; a short one has fewer parts, and the others write nothing.

    Writes unnormalised sums into `parts` [S, Hq, splits, D] and (maximum, sum of weights) into `extremes`
    [S, Hq, splits, 2]; both are float32.
    """
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + sequence)
    row = tl.load(query_start + sequence).to(tl.int64)
    used = tl.minimum(splits, tl.cdiv(context, SPLIT_KEYS))
    length = tl.cdiv(tl.cdiv(context, used), KEYS) * KEYS
    begin = split * length
    end = tl.minimum(begin + length, context)
    members = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    there = members < tl.where(split < used, GROUP, 0)
    inside = there[:, None] & (columns < D)[None, :]
    heads = head * GROUP + members
    places = heads[:, None] * D + columns[None, :]
    queries = tl.load(q + row * q_stride + places, mask=inside, other=0.0)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    seen = tl.zeros((ROWS,), tl.int32) + end
    for first in range(begin, end, KEYS):
        best, total, acc = attend_block(
            queries, best, total, acc, k_cache, v_cache,
            pages + sequence.to(tl.int64) * page_stride, head, first, seen, scale,
            page_size, slot_stride, D, WIDTH, KEYS,
        )  # fmt: skip
    all_heads = tl.num_programs(1) * GROUP
    part = (sequence.to(tl.int64) * all_heads + heads) * splits + split
    tl.store(parts + part[:, None] * D + columns[None, :], acc, mask=inside)
    tl.store(extremes + part * 2, best, mask=there)
    tl.store(extremes + part * 2 + 1, total, mask=there)


@triton.jit(
    do_not_specialize=["splits"], do_not_specialize_on_alignment=["contexts", "query_start"]
)
def combine_kernel(
    parts, extremes, out, contexts, query_start, heads, splits, D: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT_KEYS: tl.constexpr,
):  # fmt: skip
    """The result of one head of one sequence from those of its parts; one without keys has a maximum of -inf."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    numbers = tl.arange(0, SPLITS)
    columns = tl.arange(0, WIDTH)
    first = (sequence * heads + head) * splits
    there = numbers < tl.minimum(splits, tl.cdiv(tl.load(contexts + sequence), SPLIT_KEYS))
    best = tl.load(extremes + (first + numbers) * 2, mask=there, other=float("-inf"))
    total = tl.load(extremes + (first + numbers) * 2 + 1, mask=there, other=0.0)
    weights = tl.exp(best - tl.max(best, axis=0))
    inside = there[:, None] & (columns < D)[None, :]
    sums = tl.load(
        parts + (first + numbers)[:, None] * D + columns[None, :], mask=inside, other=0.0
    )
    value = tl.sum(sums * weights[:, None], axis=0) / tl.sum(total * weights, axis=0)
    row = tl.load(query_start + sequence).to(tl.int64)
    places = (row * heads + head) * D + columns
    tl.store(out + places, value.to(out.dtype.element_ty), mask=columns < D)


@triton.jit(
    do_not_specialize=["page_stride"],
    do_not_specialize_on_alignment=["contexts", "query_start"],
)
def prefill_kernel(
    q, k_cache, v_cache, pages, contexts, query_start, out, scale,
    q_stride, heads, page_stride, page_size, slot_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A block of the new tokens of one sequence, for one query head; `out` is contiguous."""
    # The last blocks see the most keys: they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start + sequence)
    length = tl.load(query_start + sequence + 1) - start
    context = tl.load(contexts + sequence)
    members = block * ROWS + tl.arange(0, ROWS)
    if block * ROWS < length:
        rows = (start + members).to(tl.int64)
        columns = tl.arange(0, WIDTH)
        inside = (members < length)[:, None] & (columns < D)[None, :]
        places = rows[:, None] * q_stride + head * D + columns[None, :]
        queries = tl.load(q + places, mask=inside, other=0.0)
        seen = tl.minimum(context - length + members + 1, context)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, WIDTH), tl.float32)
        end = tl.minimum(context - length + (block + 1) * ROWS, context)
        for first in range(0, end, KEYS):
            best, total, acc = attend_block(
                queries, best, total, acc, k_cache, v_cache,
                pages + sequence.to(tl.int64) * page_stride, head // GROUP, first, seen, scale,
                page_size, slot_stride, D, WIDTH, KEYS,
            )  # fmt: skip
        places = (rows * heads + head)[:, None] * D + columns[None, :]
        value = acc / total[:, None]
        tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    meta: AttentionMetadata,
    scale: float,
) -> torch.Tensor:
    """As `kernels.attention.paged_attention`."""
    q = q if q[0].is_contiguous() else q.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if meta.max_query_len == 1:
        _decode(q, k_cache, v_cache, meta, scale, out)
    else:
        _prefill(q, k_cache, v_cache, meta, scale, out)
    return out


def num_splits(max_context_len: int, programs: int) -> int:
    """Programs for the keys of one sequence and key head, at most.

    Args:
        max_context_len: The longest context, so that long ones keep a GPU busy.
        programs: Number of sequences times key heads.
    """
    enough = max(1, _BUSY_PROGRAMS // programs)
    return min(_MAX_SPLITS, -(-max_context_len // _SPLIT_KEYS), enough)


def _decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
) -> None:
    count, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    splits = num_splits(meta.max_context_len, count * kv_heads)
    parts = torch.empty(count, heads, splits, head_dim, dtype=torch.float32, device=q.device)
    extremes = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=q.device)
    group, width = heads // kv_heads, triton.next_power_of_2(head_dim)
    decode_kernel[(count, kv_heads, splits)](
        *(q, k_cache, v_cache, meta.page_table, meta.context_lens, meta.query_start),
        *(parts, extremes, scale, q.stride(0), meta.page_table.stride(0)),
        *(page_size, k_cache.stride(1), splits),
        GROUP=group,
        ROWS=max(_MIN_ROWS, triton.next_power_of_2(group)),
        D=head_dim,
        WIDTH=width,
        KEYS=_DECODE_KEYS,
        SPLIT_KEYS=_SPLIT_KEYS,
    )
    combine_kernel[(count, heads)](
        *(parts, extremes, out, meta.context_lens, meta.query_start, heads, splits),
        D=head_dim,
        WIDTH=width,
        SPLITS=_MAX_SPLITS,
        SPLIT_KEYS=_SPLIT_KEYS,
    )


def _prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
) -> None:
    _, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    grid = (triton.cdiv(meta.max_query_len, _PREFILL_ROWS), heads, len(meta.context_lens))
    prefill_kernel[grid](
        *(q, k_cache, v_cache, meta.page_table, meta.context_lens, meta.query_start, out, scale),
        *(q.stride(0), heads, meta.page_table.stride(0), page_size, k_cache.stride(1)),
        GROUP=heads // kv_heads,
        ROWS=_PREFILL_ROWS,
        D=head_dim,
        WIDTH=triton.next_power_of_2(head_dim),
        KEYS=_PREFILL_KEYS,
    )
