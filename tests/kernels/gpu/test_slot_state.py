"""What the kernels record before and after a step is what the references record."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from inference_service.kernels.slot_state import (
    SampledRows,
    SlotState,
    StateUpdate,
    record_tokens,
    update_slots,
)


SLOTS, WIDTH, VOCAB_SIZE = 200, 7, 30


@pytest.mark.parametrize(("sampled", "recorded", "counted"), [(1, 0, 0), (5, 5, 2), (150, 70, 65)])
def test_tokens_of_a_step(slot_state, sampled, recorded, counted):
    generator = torch.Generator().manual_seed(sampled)

    def chosen(count: int, among: int) -> torch.Tensor:
        return torch.randperm(among, generator=generator)[:count]

    state = SlotState(
        last_tokens=torch.zeros(SLOTS, dtype=torch.int64),
        page_table=torch.zeros(SLOTS, 1, dtype=torch.int32),
        history=torch.zeros(SLOTS if recorded else 0, WIDTH, dtype=torch.int32),
        counts=torch.zeros(SLOTS, VOCAB_SIZE, dtype=torch.int32),
    )
    rows = SampledRows(
        slots=chosen(sampled, SLOTS),
        history_rows=chosen(recorded, sampled),
        history_places=chosen(recorded, SLOTS * WIDTH),
        count_rows=chosen(counted, sampled),
        count_bases=chosen(counted, SLOTS) * VOCAB_SIZE,
    )
    found = deepcopy(state)
    for _ in range(2):
        token_ids = torch.randint(0, VOCAB_SIZE, (sampled,), generator=generator)
        record_tokens(state, token_ids, rows)
        slot_state.record_tokens(found, token_ids, rows)
    for name in ("last_tokens", "history", "counts"):
        assert torch.equal(getattr(found, name), getattr(state, name)), name


@pytest.mark.parametrize(
    ("pages", "begun", "counted"), [(0, 0, 0), (3, 0, 0), (200, 5, 0), (1, 0, 2), (90, 70, 66)]
)
def test_changes_before_a_step(slot_state, pages, begun, counted):
    """Rows begin anew, and then get entries; all others stay."""
    generator = torch.Generator().manual_seed(pages)

    def chosen(count: int, among: int) -> torch.Tensor:
        return torch.randperm(among, generator=generator)[:count]

    def ids(count: int) -> torch.Tensor:
        return torch.randint(0, VOCAB_SIZE, (count,), generator=generator).int()

    state = SlotState(
        last_tokens=torch.zeros(SLOTS, dtype=torch.int64),
        page_table=ids(2 * SLOTS).view(SLOTS, 2),
        history=ids(SLOTS * WIDTH).view(SLOTS, WIDTH),
        counts=ids(SLOTS * VOCAB_SIZE).view(SLOTS, VOCAB_SIZE),
    )
    history_rows, count_rows = chosen(begun, SLOTS), chosen(counted, SLOTS)
    entries = [3 * min(begun, 40), 4 * min(counted, 40)]
    update = StateUpdate(
        page_places=chosen(pages, 2 * SLOTS),
        pages=ids(pages),
        history_rows=history_rows,
        history_first=ids(begun),
        history_places=(history_rows[:, None] * WIDTH + torch.arange(3)).view(-1)[: entries[0]],
        history_ids=ids(entries[0]),
        count_rows=count_rows,
        count_places=(count_rows[:, None] * VOCAB_SIZE + torch.arange(4)).view(-1)[: entries[1]],
        count_values=ids(entries[1]),
    )
    found = deepcopy(state)
    update_slots(state, update)
    slot_state.update_slots(found, update)
    for name in ("last_tokens", "page_table", "history", "counts"):
        assert torch.equal(getattr(found, name), getattr(state, name)), name
