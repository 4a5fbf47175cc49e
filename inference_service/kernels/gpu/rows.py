"""Triton kernels over rows: RMS norm with or without the addition before it, SwiGLU's gate, rotation of heads.

References: `kernels.rms_norm`, `kernels.silu_and_mul`, `kernels.rope`. They round where the references do;
arithmetic is float32, as a product or sum of two 16-bit numbers is the same, and the interpreter cannot do others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, total, x_stride, width, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its norm and, with ADDS, the new residual; `residual`, `out` and `total` are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    if ADDS:
        other = tl.load(residual + row * width + columns, mask=inside, other=0.0)
        values = (values.to(tl.float32) + other.to(tl.float32)).to(values.dtype)
        tl.store(total + row * width + columns, values, mask=inside)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    scaled = (wide * scale).to(out.dtype.element_ty)
    factors = tl.load(weight + columns, mask=inside, other=0.0)
    result = factors.to(tl.float32) * scaled.to(tl.float32)
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.rms_norm.rms_norm`."""
    width = x.shape[-1]
    rows = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel():
        rms_norm_kernel[(len(rows),)](
            *(rows, rows, weight, out, out, rows.stride(0), width, eps),
            ADDS=False,
            BLOCK=triton.next_power_of_2(width),
        )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.rms_norm.add_rms_norm`."""
    width = x.shape[-1]
    rows = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    if rows.numel():
        rms_norm_kernel[(len(rows),)](
            *(rows, residual.contiguous(), weight, out, total, rows.stride(0), width, eps),
            ADDS=True,
            BLOCK=triton.next_power_of_2(width),
        )
    return out, total


@triton.jit
def silu_and_mul_kernel(gate_up, out, stride, width, BLOCK: tl.constexpr):
    """A block of one row: silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * stride + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(up.dtype)
    result = gated.to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * width + columns, result.to(up.dtype), mask=inside)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """As `kernels.silu_and_mul.silu_and_mul`."""
    width = gate_up.shape[-1] // 2
    rows = _rows(gate_up)
    shape = (*gate_up.shape[:-1], width)
    out = torch.empty(shape, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        block = min(1024, triton.next_power_of_2(width))
        grid = (len(rows), triton.cdiv(width, block))
        silu_and_mul_kernel[grid](rows, out, rows.stride(0), width, BLOCK=block)
    return out


@triton.jit
def rope_kernel(
    x, cos, sin, out, token_stride, head_stride, heads, width, pairs,
    ADJACENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token; `out` is contiguous."""
    place = tl.program_id(0).to(tl.int64)
    token, head = place // heads, place % heads
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    turns = columns < 2 * pairs
    if ADJACENT:
        pair = columns // 2
        partner = columns ^ 1
        sign = tl.where(columns % 2 == 0, -1.0, 1.0)
    else:
        pair = columns % pairs
        partner = tl.where(columns < pairs, columns + pairs, columns - pairs)
        sign = tl.where(columns < pairs, -1.0, 1.0)
    begin = x + token * token_stride + head * head_stride
    own = tl.load(begin + columns, mask=inside, other=0.0)
    other = tl.load(begin + partner, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cos + token * pairs + pair, mask=turns, other=1.0)
    s = tl.load(sin + token * pairs + pair, mask=turns, other=0.0)
    turned = own.to(tl.float32) * c + sign * (other * s)
    result = tl.where(turns, turned.to(own.dtype), own)
    tl.store(out + place * width + columns, result, mask=inside)


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, adjacent_pairs: bool = False
) -> torch.Tensor:
    """As `kernels.rope.apply_rope`."""
    tokens, heads, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        rope_kernel[(tokens * heads,)](
            *(x, cos.contiguous(), sin.contiguous(), out, x.stride(0), x.stride(1)),
            *(heads, width, cos.shape[1]),
            ADJACENT=adjacent_pairs,
            BLOCK=triton.next_power_of_2(width),
        )
    return out


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [rows, n] whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
