"""The operations that are chosen for the device against float64, with their times.

Caches hold NaN wherever no sequence has a token, so that reading past a context shows in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from benchmarks.card import few_rows
from benchmarks.card.setting import Setting
from inference_service.kernels.attention import AttentionMetadata, new_kv_cache, write_kv
from inference_service.kernels.heads import HeadNorms, Rotation
from inference_service.kernels.ops import REFERENCE, Ops, choose_ops, gpu_kernels
from inference_service.kernels.varlen import Spans


PAGE_SIZE = 16
HEADS = ((8, 8), (32, 8), (24, 4), (28, 4), (64, 8), (64, 4))
"""(query heads, key heads): 1, 4, 6, 7, 8 and 16 queries to a key."""
HEAD_DIMS = (64, 80, 128, 256)


def measure(setting: Setting) -> dict[str, Any]:
    """Error and time of every operation; the errors are relative to the largest value of the exact result."""
    kernels = gpu_kernels() if setting.device.type == "cuda" else ()
    ops = choose_ops(
        [setting.device], setting.dtype, kernels
    )  # its warnings tell why one is left out
    left_out = [kernel.op for kernel in kernels if getattr(ops, kernel.op) is not kernel.run]
    rows = [*_attention(setting, ops), *_small(setting, ops), _windows(setting, ops)]
    rows += few_rows.rows(setting, ops)
    limit = 1e-5 if setting.dtype == torch.float32 else 2e-2
    wrong = [row for row in rows if not row["error"] <= limit]  # NaN is wrong
    return {"limit": limit, "left_out": left_out, "wrong": [*left_out, *wrong], "rows": rows}


def _attention(setting: Setting, ops: Ops) -> Iterator[dict[str, Any]]:
    contexts = (1, 17, 100) if setting.tiny else (1, 17, 1000, 4096, 33000)
    for heads in HEADS[:2] if setting.tiny else HEADS:
        for head_dim in HEAD_DIMS[:1] if setting.tiny else HEAD_DIMS:
            for query_lens, name in (([1] * len(contexts), "decode"), ([1, 5, 64], "mixed")):
                batch = [
                    (context, min(context, query))
                    for context, query in zip(contexts, query_lens, strict=False)
                ]
                yield _attention_row(setting, ops, heads, head_dim, batch) | {"kind": name}


def _attention_row(
    setting: Setting,
    ops: Ops,
    heads: tuple[int, int],
    head_dim: int,
    batch: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    attend, exact = attention_call(setting, heads, head_dim, batch)
    run = partial(attend, ops.paged_attention)
    seconds = setting.seconds(run)
    total = sum(context for context, _ in batch)
    return {
        "op": "paged_attention",
        "heads": heads,
        "head_dim": head_dim,
        "batch": batch,
        "error": error_of(run(), exact),
        "us": seconds * 1e6,
        "bytes_per_s": 2 * total * heads[1] * head_dim * setting.dtype.itemsize / seconds,
    }


PagedAttention = Callable[[Tensor, Tensor, Tensor, AttentionMetadata, float], Tensor]
"""The signature of `kernels.attention.paged_attention`."""


def attention_call(
    setting: Setting, heads: tuple[int, int], head_dim: int, batch: Sequence[tuple[int, int]]
) -> tuple[Callable[[PagedAttention], Tensor], Tensor]:
    """What calls an implementation with random inputs, and the exact result.

    Args:
        setting: Device and dtype.
        heads: Heads of queries and of keys.
        head_dim: Width of a head.
        batch: For each sequence its tokens in the cache, and how many of them are new.
    """
    device, dtype = setting.device, setting.dtype
    meta = _metadata(batch, device)
    num_pages = int(meta.page_table.max()) + 1
    cache = new_kv_cache(
        1, num_pages, PAGE_SIZE, heads[1], head_dim, dtype=dtype, device=device
    ).fill_(float("nan"))
    k_cache, v_cache = cache[0]
    total = sum(context for context, _ in batch)
    k, v = torch.randn(2, total, heads[1], head_dim, device=device, dtype=dtype)
    write_kv(k, v, k_cache, v_cache, _slots(batch, device))
    num_rows = sum(query for _, query in batch)
    q = torch.randn(num_rows, heads[0], head_dim, device=device, dtype=dtype)
    scale = head_dim**-0.5

    def attend(run: PagedAttention) -> Tensor:
        return run(q, k_cache, v_cache, meta, scale)

    return attend, _exact(q, k, v, batch, scale)


def _ends(batch: Sequence[tuple[int, int]]) -> list[int]:
    ends, end = [], 0
    for context, _ in batch:
        end += context
        ends.append(end)
    return ends


def _pages(batch: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Pages of each sequence, taken from the end so that neighbours are not in order."""
    counts = [-(-context // PAGE_SIZE) for context, _ in batch]
    free = list(range(sum(counts)))
    return [[free.pop() for _ in range(count)] for count in counts]


def _slots(batch: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    slots = [
        pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE
        for pages, (context, _) in zip(_pages(batch), batch, strict=True)
        for i in range(context)
    ]
    return torch.tensor(slots, device=device)


def _metadata(batch: Sequence[tuple[int, int]], device: torch.device) -> AttentionMetadata:
    pages = _pages(batch)
    table = torch.zeros(len(batch), max(map(len, pages)), dtype=torch.int32)
    for row, numbers in zip(table, pages, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    slots = _slots(batch, torch.device("cpu"))
    new = torch.cat(
        [slots[end - query : end] for end, (_, query) in zip(_ends(batch), batch, strict=True)]
    )
    starts = torch.tensor([0, *(query for _, query in batch)]).cumsum(0).int()
    contexts = torch.tensor([context for context, _ in batch]).int()
    return AttentionMetadata(
        slot_mapping=new.to(device),
        page_table=table.to(device),
        query_start=starts.to(device),
        context_lens=contexts.to(device),
        host_query_start=starts.numpy(),
        host_context_lens=contexts.numpy(),
        max_query_len=max(query for _, query in batch),
        max_context_len=max(context for context, _ in batch),
    )


def _exact(
    q: Tensor, k: Tensor, v: Tensor, batch: Sequence[tuple[int, int]], scale: float
) -> Tensor:
    """Attention in float64, one sequence after the other."""
    out, row = [], 0
    for end, (context, query) in zip(_ends(batch), batch, strict=True):
        repeat = q.shape[1] // k.shape[1]
        keys, values = (
            x[end - context : end].double().repeat_interleave(repeat, dim=1) for x in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[row : row + query].double(), keys) * scale
        places = torch.arange(context, device=q.device)
        hidden = places[None, :] > (context - query + torch.arange(query, device=q.device))[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, values))
        row += query
    return torch.cat(out)


def _small(setting: Setting, ops: Ops) -> Iterator[dict[str, Any]]:
    for tokens in (1, 3) if setting.tiny else (1, 64, 4096):
        for op, exact, work in _small_operations(setting, ops, tokens):
            yield {
                "op": op,
                "tokens": tokens,
                "error": error_of(work(), exact),
                "us": setting.seconds(work) * 1e6,
            }


def _small_operations(
    setting: Setting, ops: Ops, tokens: int
) -> list[tuple[str, Tensor, Callable[[], Tensor]]]:
    """(operation, exact result, the operation) at the width of a 7B model."""
    x, residual = torch.randn(2, tokens, 3584, device=setting.device, dtype=setting.dtype)
    weight = torch.randn(3584, device=setting.device, dtype=setting.dtype)
    total = (residual + x).double()
    norm = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double()
    gate, up = x.double().chunk(2, dim=-1)
    heads = x.view(tokens, 28, 128)
    angles = torch.rand(tokens, 64, device=setting.device)
    cos, sin = angles.cos(), angles.sin()
    first, second = heads.double().chunk(2, dim=-1)
    turn, lift = cos.double()[:, None], sin.double()[:, None]
    turned = torch.cat((first * turn - second * lift, second * turn + first * lift), dim=-1)
    return [
        ("add_rms_norm", norm, lambda: ops.add_rms_norm(x, residual, weight, 1e-6)[0]),
        ("silu_and_mul", silu(gate) * up, lambda: ops.silu_and_mul(x)),
        ("apply_rope", turned, lambda: ops.apply_rope(heads, cos, sin)),
        _rotate_and_write(setting, ops, tokens),
        ("rotate_and_write by torch", *_rotate_and_write(setting, REFERENCE, tokens)[1:]),
    ]


def _windows(setting: Setting, ops: Ops) -> dict[str, Any]:
    """The windows of Qwen2.5-VL in a picture of 1008 x 1008, 81 of 64 rows, beside attention of equal lengths."""
    count, rows, heads, width = (3, 16, 2, 16) if setting.tiny else (81, 64, 16, 80)
    q, k, v = torch.randn(3, count * rows, heads, width, device=setting.device, dtype=setting.dtype)
    starts = torch.arange(0, (count + 1) * rows, rows, device=setting.device, dtype=torch.int32)
    spans = Spans(starts, starts, rows, rows)
    batched = [x.view(count, rows, heads, width).transpose(1, 2) for x in (q, k, v)]
    exact = scaled_dot_product_attention(*(x.double() for x in batched)).transpose(1, 2)
    return {
        "op": "varlen_attention",
        "error": error_of(ops.varlen_attention(q, k, v, spans), exact.flatten(0, 1)),
        "us": setting.seconds(lambda: ops.varlen_attention(q, k, v, spans)) * 1e6,
        "torch_us": setting.seconds(lambda: scaled_dot_product_attention(*batched)) * 1e6,
    }


def _rotate_and_write(
    setting: Setting, ops: Ops, tokens: int
) -> tuple[str, Tensor, Callable[[], Tensor]]:
    """28 query and 4 key heads of 128, as of a 7B model, with norms."""
    device, dtype = setting.device, setting.dtype
    heads = torch.randn(tokens, 36, 128, device=device, dtype=dtype)
    angles = torch.rand(tokens, 64, device=device)
    rotation = Rotation(angles.cos(), angles.sin())
    query, key = torch.randn(2, 128, device=device, dtype=dtype)
    cache = new_kv_cache(1, -(-tokens // 16), 16, 4, 128, dtype=dtype, device=device)[0]
    slots = torch.arange(tokens, device=device)
    wide = heads[:, :28].double()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * query.double()
    first, second = wide.chunk(2, dim=-1)
    turn, lift = rotation.cos.double()[:, None], rotation.sin.double()[:, None]
    exact = torch.cat((first * turn - second * lift, second * turn + first * lift), dim=-1)
    norms = HeadNorms(query, key, 1e-6)

    def work() -> Tensor:
        return ops.rotate_and_write(heads, norms, rotation, (cache[0], cache[1]), slots)

    return "rotate_and_write", exact, work


def error_of(result: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest value of the exact result."""
    return float((result.double() - exact).abs().max() / exact.abs().max())
