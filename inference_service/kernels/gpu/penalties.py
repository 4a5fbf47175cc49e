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
_PROGRAMS = 16
"""Of a row, for a history whose length is on the device."""


@triton.jit
def repeated(value, factor):
    """The logit of a token that occurs in a prompt or an answer."""
    return tl.where(value > 0, tl.div_rn(value, factor), value * factor)


@triton.jit
def counted(value, count, frequency, presence):
    """The logit of a token that occurs so often in an answer."""
    value -= frequency * count.to(tl.float32)
    return value - tl.where(count > 0, presence, 0.0)


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
    value = repeated(value, tl.load(repetition + one))
    if COUNTS:
        count = tl.load(counts + tl.load(count_bases + one) + token, mask=inside, other=0)
        value = counted(value, count, tl.load(frequency + one), tl.load(presence + one))
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


@triton.jit(
    do_not_specialize=["history_stride"],
    do_not_specialize_on_alignment=[
        *("temperature", "slots", "lengths", "count_bases", "repetition", "frequency", "presence"),
    ],
)
def scaled_history_kernel(
    logits, out, temperature, slots, lengths, count_bases, repetition, frequency, presence,
    history, counts, history_stride, vocab_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some entries of the history of one row; equal tokens have equal values, and `logits` is not written."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    entries = history + tl.load(slots + row) * history_stride
    for begin in range(tl.program_id(1) * BLOCK, length, tl.num_programs(1) * BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < length
        token = tl.load(entries + column, mask=inside, other=0)
        value = tl.load(logits + row * vocab_stride + token, mask=inside, other=0.0)
        value = repeated(value, tl.load(repetition + row))
        count = tl.load(counts + tl.load(count_bases + row) + token, mask=inside, other=0)
        value = counted(value, count, tl.load(frequency + row), tl.load(presence + row))
        value = tl.div_rn(value, tl.load(temperature + row))
        tl.store(out + row * vocab_stride + token, value, mask=inside)


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


def scaled_logits(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    penalties: Penalties,
    state: SlotState,
) -> torch.Tensor:
    """As `kernels.penalties.scaled_logits`; reads no more of a history than its length tells."""
    out = torch.div(logits, temperature.unsqueeze(-1))
    programs = min(_PROGRAMS, triton.cdiv(penalties.history_width, _BLOCK))
    if len(out) and programs:
        scaled_history_kernel[(len(out), programs)](
            *(logits, out, temperature, penalties.slots, penalties.lengths, penalties.count_bases),
            *(penalties.repetition, penalties.frequency, penalties.presence),
            *(state.history, state.counts, state.history.stride(0), logits.stride(0)),
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    return out
