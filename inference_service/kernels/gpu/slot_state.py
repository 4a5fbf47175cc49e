"""The Triton kernels of `kernels.slot_state`: the changes before a step in two launches at most, its tokens in one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_service.kernels.slot_state import SampledRows, SlotState, StateUpdate


_BLOCK = 64
_COLUMNS = 1024


@triton.jit(
    do_not_specialize=["begun", "length", "width"],
    do_not_specialize_on_alignment=["history_rows", "history_first", "count_rows"],
)
def begin_rows_kernel(
    history_rows, history_first, count_rows, history, counts, begun, length, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Some entries of a row that begins anew: of `history` with its first id, behind them of `counts` with zeros."""
    one = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if one < begun:
        row, first = tl.load(history_rows + one), tl.load(history_first + one)
        filled = tl.zeros((BLOCK,), tl.int32) + first
        tl.store(history + row * length + column, filled, mask=column < length)
    else:
        row = tl.load(count_rows + one - begun)
        zeros = tl.zeros((BLOCK,), tl.int32)
        tl.store(counts + row * width + column, zeros, mask=column < width)


@triton.jit(
    do_not_specialize=["paged", "told", "counted"],
    do_not_specialize_on_alignment=[
        *("page_places", "pages", "history_places", "history_ids", "count_places", "count_values"),
    ],
)
def write_entries_kernel(
    page_places, pages, history_places, history_ids, count_places, count_values,
    page_table, history, counts, paged, told, counted, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some entries of each list; places are distinct within each."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < paged
    place = tl.load(page_places + entry, mask=inside, other=0)
    tl.store(page_table + place, tl.load(pages + entry, mask=inside, other=0), mask=inside)
    inside = entry < told
    place = tl.load(history_places + entry, mask=inside, other=0)
    tl.store(history + place, tl.load(history_ids + entry, mask=inside, other=0), mask=inside)
    inside = entry < counted
    place = tl.load(count_places + entry, mask=inside, other=0)
    tl.store(counts + place, tl.load(count_values + entry, mask=inside, other=0), mask=inside)


def update_slots(state: SlotState, update: StateUpdate) -> None:
    """As `kernels.slot_state.update_slots`."""
    begun, cleared = len(update.history_rows), len(update.count_rows)
    length, width = state.history.shape[1], state.counts.shape[1]
    if begun or cleared:
        longest = max(length if begun else 0, width if cleared else 0)
        begin_rows_kernel[(begun + cleared, triton.cdiv(longest, _COLUMNS))](
            *(update.history_rows, update.history_first, update.count_rows),
            *(state.history, state.counts, begun, length, width),
            BLOCK=_COLUMNS,
        )
    lists = (update.page_places, update.history_places, update.count_places)
    longest = max(map(len, lists))
    if longest:  # behind the rows that begin anew
        write_entries_kernel[(triton.cdiv(longest, _BLOCK),)](
            *(update.page_places, update.pages, update.history_places, update.history_ids),
            *(update.count_places, update.count_values),
            *(state.page_table, state.history, state.counts, *map(len, lists)),
            BLOCK=_BLOCK,
        )


@triton.jit(
    do_not_specialize=["sampled", "recorded", "counted"],
    do_not_specialize_on_alignment=[
        *("tokens", "slots", "history_rows", "history_places", "count_rows", "count_bases"),
    ],
)
def record_tokens_kernel(
    tokens, slots, history_rows, history_places, count_rows, count_bases, last, history, counts,
    sampled, recorded, counted, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some entries of each list; places that are read later are distinct."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < sampled
    token = tl.load(tokens + entry, mask=inside, other=0)
    tl.store(last + tl.load(slots + entry, mask=inside, other=0), token, mask=inside)
    inside = entry < recorded
    token = tl.load(tokens + tl.load(history_rows + entry, mask=inside, other=0), mask=inside)
    place = tl.load(history_places + entry, mask=inside, other=0)
    tl.store(history + place, token.to(tl.int32), mask=inside)
    inside = entry < counted
    token = tl.load(tokens + tl.load(count_rows + entry, mask=inside, other=0), mask=inside)
    base = tl.load(count_bases + entry, mask=inside, other=0)
    inside &= base > 0
    count = tl.load(counts + base + token, mask=inside, other=0)
    tl.store(counts + base + token, count + 1, mask=inside)


def record_tokens(state: SlotState, token_ids: torch.Tensor, rows: SampledRows) -> None:
    """As `kernels.slot_state.record_tokens`."""
    lists = (rows.slots, rows.history_rows, rows.count_rows)
    record_tokens_kernel[(triton.cdiv(max(map(len, lists)), _BLOCK),)](
        *(token_ids, rows.slots, rows.history_rows, rows.history_places),
        *(rows.count_rows, rows.count_bases, state.last_tokens, state.history, state.counts),
        *map(len, lists),
        BLOCK=_BLOCK,
    )
