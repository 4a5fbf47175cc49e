"""The kernels of penalties change logits as the reference does, bit by bit, and nothing else."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels.penalties import Penalties, penalise
from inference_service.kernels.slot_state import SlotState


SLOTS, LENGTH, VOCAB_SIZE = 6, 700, 900


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 300), (3, 0), (0, 7)])
def test_logits_of_any_history(penalties, rows, width, counts):
    generator = torch.Generator().manual_seed(rows)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator)

    history = torch.full((SLOTS, LENGTH), -1, dtype=torch.int32)
    # Few different tokens, so that most occur more than once; behind them nothing may be read.
    history[:, :width] = torch.randint(0, 50, (SLOTS, width), generator=generator).int()
    table = torch.randint(0, 4, (SLOTS + 1, VOCAB_SIZE), generator=generator)
    nothing = torch.empty(0)
    state = SlotState(nothing, nothing, history, table.int())
    given = Penalties(
        rows=torch.randperm(8, generator=generator)[:rows],
        slots=torch.randperm(SLOTS, generator=generator)[:rows],
        count_bases=torch.randperm(SLOTS, generator=generator)[:rows] * VOCAB_SIZE,
        repetition=uniform(0.5, 2.0),
        frequency=uniform(-1.0, 1.0),
        presence=uniform(-1.0, 1.0),
        history_width=width,
        counts=counts,
    )
    expected = torch.randn(8, VOCAB_SIZE, generator=generator)
    found = expected.clone()
    penalise(expected, given, state)
    penalties.penalise(found, given, state)
    assert torch.equal(found, expected)
