"""What the kernel records of a step is what the reference records."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from inference_service.kernels.slot_state import SampledRows, SlotState, record_tokens


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
