"""The Triton kernels of `kernels.choice`: one pass over the logits, whose noise is computed where it is added.

The hash is exact and the logarithms are those that torch calls on a GPU, so that equal keys draw equal tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


_BLOCK = 1024
_INTERPRETED = triton.knobs.runtime.interpret
"""The interpreter has no functions of CUDA's library."""


@triton.jit
def lowbias32(bits):
    """Wellons' hash of uint32."""
    bits ^= bits >> 16
    bits *= 0x7FEB352D
    bits ^= bits >> 15
    bits *= 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def log1p(x, INTERPRETED: tl.constexpr):
    """The logarithm of 1 + x for -1 < x < 0."""
    if INTERPRETED:
        shifted = 1.0 + x
        # What rounding has taken from x is put back (Kahan).
        correction = x / tl.where(shifted == 1.0, 1.0, shifted - 1.0)
        return tl.where(shifted == 1.0, x, tl.log(shifted) * correction)
    return libdevice.log1p(x)


@triton.jit
def log(x, INTERPRETED: tl.constexpr):
    """The logarithm; that of Triton is an approximation."""
    if INTERPRETED:
        return tl.log(x)
    return libdevice.log(x)


@triton.jit(do_not_specialize_on_alignment=["low", "high", "drawn"])
def block_maximum_kernel(
    logits, minimum, low, high, drawn, values, places, width, blocks,
    CUT: tl.constexpr, MIXED: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest logit with noise of a block of one row, and its first token: into [D, blocks] each."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    logit = tl.load(logits + row * width + token, mask=inside, other=float("-inf"))
    if CUT:
        logit = tl.where(logit >= tl.load(minimum + row), logit, float("-inf"))
    bits = token.to(tl.uint32) ^ tl.load(low + row).to(tl.uint32, bitcast=True)
    bits = lowbias32(bits) ^ tl.load(high + row).to(tl.uint32, bitcast=True)
    bits = lowbias32(bits) & 0x7FFFFFFF
    minus_u = tl.maximum((bits.to(tl.float32) + 0.5) * -4.656612873077393e-10, -0.9999999403953552)
    noise = -log(-log1p(minus_u, INTERPRETED), INTERPRETED)
    if MIXED:
        noise = tl.where(tl.load(drawn + row) == 0, 0.0, noise)
    total = logit + noise
    # As in torch, what is no number is the largest.
    total = tl.where(total == total, total, float("inf"))  # noqa: PLR0124
    total = tl.where(inside, total, float("-inf"))
    largest = tl.max(total, axis=0)
    first = tl.min(tl.where(inside & (total == largest), token, width), axis=0)
    tl.store(values + row * blocks + block, largest)
    tl.store(places + row * blocks + block, first)


@triton.jit
def row_maximum_kernel(values, places, tokens, blocks, BLOCK: tl.constexpr):
    """The first token with the largest value of one row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    inside = block < blocks
    value = tl.load(values + row * blocks + block, mask=inside, other=float("-inf"))
    place = tl.load(places + row * blocks + block, mask=inside, other=2147483647)
    best = tl.where(inside & (value == tl.max(value, axis=0)), place, 2147483647)
    tl.store(tokens + row, tl.min(best, axis=0).to(tl.int64))


def choose_tokens(
    logits: torch.Tensor,
    minimum: torch.Tensor | None,
    low: torch.Tensor,
    high: torch.Tensor,
    drawn: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.choice.choose_tokens`."""
    rows, width = logits.shape
    device = logits.device
    blocks = triton.cdiv(width, _BLOCK)
    values = torch.empty(rows, blocks, dtype=torch.float32, device=device)
    places = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    out = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return out
    block_maximum_kernel[(rows, blocks)](
        *(logits, logits if minimum is None else minimum, low, high),
        *(low if drawn is None else drawn, values, places, width, blocks),
        CUT=minimum is not None,
        MIXED=drawn is not None,
        INTERPRETED=_INTERPRETED,
        BLOCK=_BLOCK,
    )
    row_maximum_kernel[(rows,)](
        *(values, places, out, blocks), BLOCK=triton.next_power_of_2(blocks)
    )
    return out
