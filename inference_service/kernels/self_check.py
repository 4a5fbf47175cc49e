"""Runs a kernel once on small inputs on the device of a model, and compares it with its torch reference.

What cannot be caught here: an access to an illegal address leaves every later call of CUDA in this process failing, a
kernel that never ends runs into `--engine-start-timeout-s`, and a compiler that aborts takes the process with it. Then
the engine does not start until the operator sets `--gpu-kernels off`. Variants of a kernel for other sizes than those
of the decoder, such as the widths of a vision tower, are not checked; the step of maximum size that measures the memory
compiles them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
import math

import numpy as np
import torch
from torch import Tensor

from inference_service.kernels.attention import AttentionMetadata, write_kv
from inference_service.kernels.check_inputs import PAGE_SIZE, Inputs, Run
from inference_service.kernels.heads import HeadNorms, Rotation
from inference_service.kernels.sampling_checks import SAMPLING_CASES
from inference_service.kernels.skinny_linear import MAX_ROWS, SPLITS
from inference_service.kernels.varlen import Spans


LIMITS = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference by dtype, relative to the largest value of the reference.

They leave room for the reference's own roundings, TF32 among them; a wrong row, mask or page differs by far more.
"""
_BATCHES = (((1, 1), (33, 1)), ((17, 1), (600, 1)), ((1, 1), (70, 40), (600, 3)))
"""(context, new tokens) of sequences: decode, with contexts that are short and that are split, and prefill."""


def _rotate_and_write(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    sizes = inputs.sizes
    slots = torch.tensor([3, 17, 30, 0, 31]).to(inputs.device)
    width = sum((sizes.num_heads, 2 * sizes.num_kv_heads))
    heads = inputs.noise(len(slots), width, sizes.head_dim)
    angles = inputs.noise(len(slots), sizes.rotated // 2).float()
    scale = inputs.noise(len(slots)).float() if sizes.scaled_queries else None
    rotation = Rotation(angles.cos(), angles.sin(), scale, sizes.adjacent_pairs)
    norms = None
    if sizes.qk_norm:
        query, key = inputs.noise(2, sizes.head_dim)
        norms = HeadNorms(query, key, 1e-6)
    caches = inputs.caches(2, -1.0)
    q = run(heads, norms, rotation, (caches[0], caches[1]), slots)
    return [q, caches]


def _paged_attention(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    return [_attend(run, inputs, batch) for batch in _BATCHES]


def _attend(run: Run, inputs: Inputs, batch: Sequence[tuple[int, int]]) -> Tensor:
    """Attention of a batch; what no sequence owns holds NaN, page 0 among it, which pads the table."""
    contexts, news = (np.array(column, np.int32) for column in zip(*batch, strict=True))
    starts = np.array([0, *accumulate(news)], np.int32)
    counts = [-(-context // PAGE_SIZE) for context, _ in batch]
    caches = inputs.caches(sum(counts) + 1, math.nan)
    free = list(range(1, sum(counts) + 1))
    table = torch.zeros(len(batch), max(counts), dtype=torch.int32)
    slots = []
    for row, count, (context, new) in zip(table, counts, batch, strict=True):
        row[:count] = torch.tensor([free.pop() for _ in range(count)])
        places = torch.arange(context)
        own = row[places // PAGE_SIZE].long() * PAGE_SIZE + places % PAGE_SIZE
        _, k, v = inputs.heads(context)
        write_kv(k, v, caches[0], caches[1], own.to(inputs.device))
        slots.append(own[context - new :])
    meta = AttentionMetadata(
        slot_mapping=torch.cat(slots).to(inputs.device),
        page_table=table.to(inputs.device),
        query_start=torch.from_numpy(starts).to(inputs.device),
        context_lens=torch.from_numpy(contexts).to(inputs.device),
        host_query_start=starts,
        host_context_lens=contexts,
        max_query_len=int(news.max()),
        max_context_len=int(contexts.max()),
    )
    q, _, _ = inputs.heads(int(starts[-1]))
    result: Tensor = run(q, caches[0], caches[1], meta, inputs.sizes.head_dim**-0.5)
    return result


def _rms_norm(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    widths = (inputs.sizes.hidden_size, inputs.sizes.head_dim)
    return [run(inputs.noise(3, width), inputs.noise(width), 1e-6) for width in widths]


def _add_rms_norm(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    x, residual = inputs.noise(2, 3, inputs.sizes.hidden_size)
    return [*run(x, residual, inputs.noise(inputs.sizes.hidden_size), 1e-6)]


def _apply_rope(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    q, k, _ = inputs.heads(3)
    return [
        run(x, angles.cos(), angles.sin(), adjacent_pairs=adjacent)
        for x, pairs in ((q, inputs.sizes.head_dim // 2), (k, inputs.sizes.head_dim // 4))
        for angles in [inputs.noise(3, pairs).float()]
        for adjacent in (False, True)
    ]


def _silu_and_mul(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    return [run(inputs.noise(3, 2 * inputs.sizes.intermediate_size))]


def _skinny_linear(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    width = inputs.sizes.hidden_size
    weight, bias = inputs.noise(width, width) / width**0.5, inputs.noise(width)
    return [
        run(inputs.noise(rows, width), weight, one, splits)
        for splits in (SPLITS[0], SPLITS[2])
        for rows, one in ((1, bias), (MAX_ROWS, None))
    ]


def _varlen_attention(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Segments of several lengths, and a part of the rows of one; heads are parts of a fused projection."""
    heads, width = inputs.sizes.vision_heads
    fused = inputs.noise(84, 3 * heads, width)
    q, k, v = fused.split_with_sizes((heads, heads, heads), dim=1)
    starts = torch.tensor([0, 3, 20, 84], dtype=torch.int32).to(inputs.device)
    some = torch.tensor([0, 9], dtype=torch.int32).to(inputs.device)
    whole = torch.tensor([0, 84], dtype=torch.int32).to(inputs.device)
    return [
        run(q, k, v, Spans(starts, starts, 64, 64)),
        run(q[30:39], k, v, Spans(some, whole, 9, 84)),
    ]


CASES: Mapping[str, Callable[[Run, Inputs], Sequence[Tensor]]] = {
    "rotate_and_write": _rotate_and_write,
    "paged_attention": _paged_attention,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "apply_rope": _apply_rope,
    "silu_and_mul": _silu_and_mul,
    "skinny_linear": _skinny_linear,
    "varlen_attention": _varlen_attention,
    **SAMPLING_CASES,
}
"""By operation: the results of an implementation for the inputs."""


def defect(op: str, run: Run, reference: Run, inputs: Inputs) -> str:
    """Why a kernel cannot be used, in one line; empty if it can.

    An error of the reference is raised: without it there is no model, with or without kernels.
    """
    expected = CASES[op](reference, inputs)
    try:
        found = CASES[op](run, inputs)
        # Reads the results, and so waits for the kernel and gets its errors.
        differences = [difference(*pair) for pair in zip(found, expected, strict=True)]
        return next(filter(None, differences), "")
    except Exception as error:  # noqa: BLE001 - compilers and drivers may raise anything
        return in_one_line(error)


def in_one_line(error: Exception) -> str:
    """The kind of an error and its message, without the middle of a long one."""
    text = " ".join(str(error).split())
    short = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return f"{type(error).__name__}: {short}"


def difference(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> str:
    """How a result differs from that of the reference, in one line; empty if it does not.

    Args:
        found: The result.
        expected: That of the reference.
        dtype: The dtype in which both were computed, a key of `LIMITS`; None = their own.
    """
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{found.dtype} {[*found.shape]} instead of {expected.dtype} {[*expected.shape]}"
    limit = LIMITS.get(dtype or expected.dtype, 0.0)  # integers are equal
    error = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    if error <= limit:
        return ""
    return f"it differs from its reference by {error:.2g} of the largest value, limit {limit:.2g}"
