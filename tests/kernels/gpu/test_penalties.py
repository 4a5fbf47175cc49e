"""The kernels of penalties change logits as the reference does, bit by bit, and nothing else."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels.penalties import Penalties, penalise, scaled_logits
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


@pytest.mark.parametrize(("rows", "longest"), [(1, 1), (5, 300), (4, 5000), (0, 7)])
def test_scaled_logits_of_any_history(penalties, rows, longest):
    """Rows without penalties read nothing of their history, which may be anything then."""
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator).int()
    off = torch.arange(rows) % 2 == 1
    history = torch.full((SLOTS, longest), 7, dtype=torch.int32)
    slots = torch.randperm(SLOTS, generator=generator)[:rows]
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        history[slot, :length] = torch.randint(0, 50, (length,), generator=generator).int()
        history[slot, length:] = history[slot, 0]
    table = torch.randint(0, 4, (SLOTS + 1, VOCAB_SIZE), generator=generator).int()
    nothing = torch.empty(0)
    state = SlotState(nothing, nothing, history, table)

    def uniform(low: float, high: float, without: float) -> torch.Tensor:
        values = low + (high - low) * torch.rand(rows, generator=generator)
        return values.masked_fill(off, without)

    given = Penalties(
        rows=torch.arange(rows),
        slots=slots,
        count_bases=torch.arange(rows) * VOCAB_SIZE,
        repetition=uniform(0.5, 2.0, 1.0),
        frequency=uniform(-1.0, 1.0, 0.0),
        presence=uniform(-1.0, 1.0, 0.0),
        history_width=longest,
        counts=True,
        lengths=lengths.masked_fill(off, 0),
    )
    logits = torch.randn(rows, VOCAB_SIZE, generator=generator)
    kept = logits.clone()
    temperature = uniform(0.1, 2.0, 1.0)
    expected = scaled_logits(logits, temperature, given, state)
    history[slots[off]] = -1
    found = penalties.scaled_logits(logits, temperature, given, state)
    assert torch.equal(found, expected)
    assert torch.equal(logits, kept)
