"""The Triton kernels of `kernels.skinny_linear`: a weight in 16 bit is read once, by many programs.

The weight is the left operand of the matrix instruction and the few rows are the right one, padded to 16. A second
kernel adds the parts in order, so that the result is the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


_OUTPUTS, _INPUTS, _ROWS = 64, 64, 16
_STAGES, _WARPS = 4, 4
_COMBINED = 512


@triton.jit(do_not_specialize=["rows", "splits"])
def skinny_linear_kernel(
    x, weight, bias, out, parts, rows, outputs, inputs, x_stride, splits,
    WHOLE: tl.constexpr, BIASED: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some outputs of all rows, over some inputs: into `out` [M, out] if WHOLE, else `parts` [splits, M, out]."""
    split = tl.program_id(1)
    length = tl.cdiv(tl.cdiv(inputs, splits), INPUTS) * INPUTS
    begin = split * length
    end = tl.minimum(begin + length, inputs)
    of_output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    place = weight + of_output.to(tl.int64)[:, None] * inputs
    is_output, is_row = of_output < outputs, row < rows
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for first in tl.range(begin, end, INPUTS):
        column = first + tl.arange(0, INPUTS)
        inside = column < end
        w = tl.load(
            place + column[None, :],
            mask=is_output[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        values = tl.load(
            x + row[None, :] * x_stride + column[:, None],
            mask=is_row[None, :] & inside[:, None],
            other=0.0,
        )
        total += tl.dot(w, values, input_precision="ieee")
    wanted = is_output[:, None] & is_row[None, :]
    target = row[None, :] * outputs + of_output[:, None]
    if WHOLE:
        if BIASED:
            total += tl.load(bias + of_output, mask=is_output, other=0.0).to(tl.float32)[:, None]
        tl.store(out + target, total.to(out.dtype.element_ty), mask=wanted)
    else:
        tl.store(parts + split * rows * outputs + target, total, mask=wanted)


@triton.jit(do_not_specialize=["rows", "splits"])
def add_parts_kernel(
    parts, bias, out, rows, outputs, splits, BIASED: tl.constexpr, BLOCK: tl.constexpr
):
    """A block of the outputs of one row."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < outputs
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.range(0, splits):
        total += tl.load(parts + (split * rows + row) * outputs + column, mask=inside, other=0.0)
    if BIASED:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + column, total.to(out.dtype.element_ty), mask=inside)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, splits: int
) -> torch.Tensor:
    """As `kernels.skinny_linear.skinny_linear`."""
    rows, inputs = x.shape
    outputs = len(weight)
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    parts = out
    if splits > 1:
        parts = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device)
    added = out if bias is None else bias
    skinny_linear_kernel[(triton.cdiv(outputs, _OUTPUTS), splits)](
        *(x, weight, added, out, parts, rows, outputs, inputs, x.stride(0), splits),
        WHOLE=splits == 1,
        BIASED=bias is not None,
        OUTPUTS=_OUTPUTS,
        INPUTS=_INPUTS,
        ROWS=_ROWS,
        num_stages=_STAGES,
        num_warps=_WARPS,
    )
    if splits > 1:
        add_parts_kernel[(rows, triton.cdiv(outputs, _COMBINED))](
            *(parts, added, out, rows, outputs, splits),
            BIASED=bias is not None,
            BLOCK=_COMBINED,
        )
    return out
