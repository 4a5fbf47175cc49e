"""The Triton kernel of `kernels.filters`: the minimum logit of a row by bisection, without sorting.

Floats are compared as integers in the same order, so that a search ends after 32 steps whatever the values are. It
looks at few tokens mostly: the k-th largest of the maxima of chunks is reached by k tokens, and tokens so far below the
most likely one that `top_p` cuts all of them are counted only. What remains is copied into a table, unless it is too
much; then every step of the search reads the whole row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


_BLOCK, _CHUNK, _TABLE = 4096, 64, 8192
_WARPS = 8
_INTERPRETED = triton.knobs.runtime.interpret
"""The interpreter has no functions of CUDA's library."""


@triton.jit
def key_of(value):
    """An integer in the order of float32."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def value_of(key):
    """The float32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(value, maximum, INTERPRETED: tl.constexpr):
    """The probability relative to the most likely token; the exponential of Triton is an approximation."""
    if INTERPRETED:
        return tl.exp(value - maximum)
    return libdevice.exp(value - maximum)


@triton.jit
def number_of(source, count, minimum, BLOCK: tl.constexpr):
    """How many of the values reach the minimum."""
    total = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, count, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < count
        value = tl.load(source + place, mask=inside, other=float("-inf"))
        total += (inside & (value >= minimum)).to(tl.int32)
    return tl.sum(total, axis=0)


@triton.jit
def mass_above(source, count, limit, maximum, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the weights of the values above a limit, float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, count, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        value = tl.load(source + place, mask=place < count, other=float("-inf"))
        weight = weight_of(value, maximum, INTERPRETED)
        total += tl.where(value > limit, weight, 0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def kth_largest(source, count, k, low, high, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key from `low` to `high` that k values reach, or up to STEP - 1 less; `low` if none is."""
    end = high + 1
    while end - low > STEP:
        middle = (low + end) >> 1
        if number_of(source, count, value_of(middle), BLOCK) >= k:
            low = middle
        else:
            end = middle
    return low


@triton.jit
def end_of_mass(
    source, count, limit, maximum, low, high, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr
):
    """The smallest key from `low` to `high` above which there is less mass than the limit; `high` if none is."""
    below = low - 1
    while high - below > 1:
        middle = (below + high) >> 1
        if mass_above(source, count, value_of(middle), maximum, INTERPRETED, BLOCK) < limit:
            high = middle
        else:
            below = middle
    return high


@triton.jit
def chunk_maxima(source, maxima, width, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the maximum of every chunk, and returns that of all."""
    chunks: tl.constexpr = BLOCK // CHUNK
    largest = tl.full((chunks,), float("-inf"), tl.float32)
    chunk = tl.arange(0, chunks)
    place = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    for begin in range(0, width, BLOCK):
        value = tl.load(source + begin + place, mask=begin + place < width, other=float("-inf"))
        of_chunk = tl.max(value, axis=1)
        first = begin + chunk * CHUNK
        tl.store(maxima + first // CHUNK, of_chunk, mask=first < width)
        largest = tl.maximum(largest, of_chunk)
    return tl.max(largest, axis=0)


@triton.jit
def select_reaching(
    source, table, width, bound, minimum, maximum,
    INTERPRETED: tl.constexpr, TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copies the values that reach the bound, as far as they fit; their number, and the mass from the minimum on."""
    found = tl.zeros((), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        value = tl.load(source + place, mask=place < width, other=float("-inf"))
        kept = (place < width) & (value >= bound)
        target = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(table + target, value, mask=kept & (target < TABLE))
        found += tl.sum(kept.to(tl.int32), axis=0)
        weight = weight_of(value, maximum, INTERPRETED)
        mass += tl.where((place < width) & (value >= minimum), weight, 0.0).to(tl.float64)
    return found, tl.sum(mass, axis=0)


@triton.jit(do_not_specialize_on_alignment=["log_min_p", "top_k", "top_p"])
def lowest_kept_kernel(
    logits, log_min_p, top_k, top_p, maxima, table, out, width, chunks,
    INTERPRETED: tl.constexpr, CHUNK: tl.constexpr, TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; without any filter, nothing of it is read."""
    row = tl.program_id(0).to(tl.int64)
    k, p, relative = tl.load(top_k + row), tl.load(top_p + row), tl.load(log_min_p + row)
    ranked, massed = k < width, p < 1.0
    cut = tl.full((), float("-inf"), tl.float32)
    if ranked | massed | (relative > float("-inf")):
        source, few = logits + row * width, table + row * TABLE
        maximum = chunk_maxima(source, maxima + row * chunks, width, CHUNK, BLOCK)
        tl.debug_barrier()
        cut = maximum + relative
        if ranked | massed:
            lowest, highest = key_of(cut), key_of(maximum)
            bound = lowest
            if ranked:
                if k <= chunks:
                    least = key_of(tl.full((), float("-inf"), tl.float32))
                    rough = kth_largest(
                        maxima + row * chunks, chunks, k, least, highest, 1 << 16, BLOCK
                    )
                    bound = tl.maximum(bound, rough)
            else:
                # Each token below has less than half of (1 - p) / V of the weight of the most likely one.
                bound = tl.maximum(bound, key_of(maximum + tl.log((1.0 - p) / (2.0 * width))))
            number, total = select_reaching(
                source, few, width, value_of(bound), cut, maximum, INTERPRETED, TABLE, BLOCK
            )
            tl.debug_barrier()
            count = width
            if number <= TABLE:
                source, count = few, number
            if ranked:
                lowest = kth_largest(source, count, k, bound, highest, 1, BLOCK)
            if massed:
                if ranked:
                    last = value_of(lowest)
                    above = number_of(source, count, value_of(lowest + 1), BLOCK)
                    same = tl.minimum(k, number_of(source, count, last, BLOCK)) - above
                    total = mass_above(source, count, last, maximum, INTERPRETED, BLOCK)
                    total += same * weight_of(last, maximum, INTERPRETED).to(tl.float64)
                limit = p.to(tl.float64) * total
                lowest = tl.maximum(lowest, bound)
                lowest = end_of_mass(
                    source, count, limit, maximum, lowest, highest, INTERPRETED, BLOCK
                )
            cut = value_of(lowest)
    tl.store(out + row, cut)


def lowest_kept(
    logits: torch.Tensor, log_min_p: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """As `kernels.filters.lowest_kept`; minus infinity for a row without filters."""
    rows, width = logits.shape
    chunks = triton.cdiv(width, _CHUNK)
    maxima = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    table = torch.empty(rows, _TABLE, dtype=torch.float32, device=logits.device)
    out = torch.empty(rows, 1, dtype=torch.float32, device=logits.device)
    if rows:
        lowest_kept_kernel[(rows,)](
            *(logits, log_min_p, top_k, top_p, maxima, table, out, width, chunks),
            INTERPRETED=_INTERPRETED,
            CHUNK=_CHUNK,
            TABLE=_TABLE,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return out
