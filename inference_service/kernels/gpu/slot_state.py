"""The Triton kernel of `kernels.slot_state.record_tokens`: what is recorded of a step, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inference_service.kernels.slot_state import SampledRows, SlotState


_BLOCK = 64


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
    """Some entries of each list; places are distinct, so that no two programs write to the same one."""
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
    place = tl.load(count_bases + entry, mask=inside, other=0) + token
    count = tl.load(counts + place, mask=inside, other=0)
    tl.store(counts + place, count + 1, mask=inside)


def record_tokens(state: SlotState, token_ids: torch.Tensor, rows: SampledRows) -> None:
    """As `kernels.slot_state.record_tokens`."""
    lists = (rows.slots, rows.history_rows, rows.count_rows)
    record_tokens_kernel[(triton.cdiv(max(map(len, lists)), _BLOCK),)](
        *(token_ids, rows.slots, rows.history_rows, rows.history_places),
        *(rows.count_rows, rows.count_bases, state.last_tokens, state.history, state.counts),
        *map(len, lists),
        BLOCK=_BLOCK,
    )
