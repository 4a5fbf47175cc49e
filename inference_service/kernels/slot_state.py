"""What the device remembers of the running sequences between steps, by slot: what the host does not know in time.

The reference of two operations: one before a step, which takes the changes that the host sends, and one after it, which
records the tokens that were sampled. Both work in place and wait for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class SlotState:
    """The memory of S slots.

    Attributes:
        last_tokens: [S] int64: the token that was sampled last.
        page_table: [S, P] int32: KV pages in order.
        history: [H, L] int32, H <= S: for penalties, the distinct ids of the prompt and then the answer. The rest of a
            row repeats its first id, so that rows of different lengths can be read together.
        counts: [C, V] int32: how often each token is in an answer. Row 0 is never written: it is all zeros.
    """

    last_tokens: Tensor
    page_table: Tensor
    history: Tensor
    counts: Tensor

    def get_device(self) -> int:
        """The number of the GPU; -1 = a CPU, as of a tensor."""
        return self.page_table.get_device()


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """Changes to the state before a step; places are indices of flattened tensors, distinct within each field.

    Attributes:
        page_places: [N] int64, places in `page_table`.
        pages: [N] int32.
        history_rows: [A] int64: rows of `history` that begin anew.
        history_first: [A] int32: the first id of each of them.
        history_places: [M] int64, places in `history`.
        history_ids: [M] int32.
        count_rows: [B] int64: rows of `counts` to be cleared.
        count_places: [K] int64, places in `counts`.
        count_values: [K] int32.
    """

    page_places: Tensor
    pages: Tensor
    history_rows: Tensor
    history_first: Tensor
    history_places: Tensor
    history_ids: Tensor
    count_rows: Tensor
    count_places: Tensor
    count_values: Tensor


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Where the R tokens of a step are recorded.

    Attributes:
        slots: [R] int64, distinct.
        history_rows: [P] int64: those of the R rows that have a history.
        history_places: [P] int64: places of their tokens in the flattened `history`.
        count_rows: [Q] int64: those of the R rows that are counted.
        count_bases: [Q] int64: places of their rows in the flattened `counts`; 0 = not counted after all.
    """

    slots: Tensor
    history_rows: Tensor
    history_places: Tensor
    count_rows: Tensor
    count_bases: Tensor


def update_slots(state: SlotState, update: StateUpdate) -> None:
    """Takes the changes of a step, in the order of the fields."""
    if update.page_places.numel():
        state.page_table.view(-1).index_copy_(0, update.page_places, update.pages)
    if update.history_rows.numel():
        first = update.history_first.unsqueeze(-1).expand(-1, state.history.shape[1])
        state.history.index_copy_(0, update.history_rows, first)
    if update.history_places.numel():
        state.history.view(-1).index_copy_(0, update.history_places, update.history_ids)
    if update.count_rows.numel():
        state.counts.index_fill_(0, update.count_rows, 0)
    if update.count_places.numel():
        state.counts.view(-1).index_copy_(0, update.count_places, update.count_values)


def record_tokens(state: SlotState, token_ids: Tensor, rows: SampledRows) -> None:
    """Records the tokens [R] int64 that were sampled in a step."""
    state.last_tokens.index_copy_(0, rows.slots, token_ids)
    if rows.history_rows.numel():
        recorded = token_ids.index_select(0, rows.history_rows).int()
        state.history.view(-1).index_copy_(0, rows.history_places, recorded)
    if rows.count_rows.numel():
        places = rows.count_bases + token_ids.index_select(0, rows.count_rows)
        state.counts.view(-1).index_add_(0, places, (rows.count_bases > 0).to(state.counts.dtype))
