"""The Triton kernels of `kernels.penalties`, which round as the reference does.

A token may occur more than once in a history: all values are read before the first one is written, by another kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_service.kernels.penalties import Penalties
from inference_service.kernels.slot_state import SlotState


_BLOCK = 256


@triton.jit(
    do_not_specialize=["width", "history_stride"],
    do_not_specialize_on_alignment=[
        *("row_ids", "slots", "count_bases", "repetition", "frequency", "presence"),
    ],
)
def penalised_kernel(
    logits, row_ids, slots, count_bases, repetition, frequency, presence, history, counts, values,
    width, history_stride, vocab_stride, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some entries of the history of one row: into `values` [P, width]."""
    one = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(history + tl.load(slots + one) * history_stride + column, mask=inside, other=0)
    value = tl.load(logits + tl.load(row_ids + one) * vocab_stride + token, mask=inside, other=0.0)
    factor = tl.load(repetition + one)
    value = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
    if COUNTS:
        count = tl.load(counts + tl.load(count_bases + one) + token, mask=inside, other=0)
        value -= tl.load(frequency + one) * count.to(tl.float32)
        value -= tl.where(count > 0, tl.load(presence + one), 0.0)
    tl.store(values + one.to(tl.int64) * width + column, value, mask=inside)


@triton.jit(
    do_not_specialize=["width", "history_stride"],
    do_not_specialize_on_alignment=["row_ids", "slots"],
)
def write_penalised_kernel(
    logits,
    row_ids,
    slots,
    history,
    values,
    width,
    history_stride,
    vocab_stride,
    BLOCK: tl.constexpr,
):
    """Some entries of the history of one row: from `values` into the logits; equal tokens have equal values."""
    one = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(history + tl.load(slots + one) * history_stride + column, mask=inside, other=0)
    value = tl.load(values + one.to(tl.int64) * width + column, mask=inside, other=0.0)
    tl.store(logits + tl.load(row_ids + one) * vocab_stride + token, value, mask=inside)


def penalise(logits: torch.Tensor, penalties: Penalties, state: SlotState) -> None:
    """As `kernels.penalties.penalise`."""
    count, width = len(penalties.rows), penalties.history_width
    values = torch.empty(count, width, dtype=torch.float32, device=logits.device)
    if not values.numel():
        return
    grid = (count, triton.cdiv(width, _BLOCK))
    strides = (state.history.stride(0), logits.stride(0))
    penalised_kernel[grid](
        *(logits, penalties.rows, penalties.slots, penalties.count_bases),
        *(penalties.repetition, penalties.frequency, penalties.presence),
        *(state.history, state.counts, values, width, *strides),
        COUNTS=penalties.counts,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )
    write_penalised_kernel[grid](
        *(logits, penalties.rows, penalties.slots, state.history, values, width, *strides),
        BLOCK=_BLOCK,
    )
