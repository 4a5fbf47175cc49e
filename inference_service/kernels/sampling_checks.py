"""The operations around logits on small inputs: the state of the slots, penalties, filters and the choice of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from inference_service.kernels.check_inputs import Inputs, Run
from inference_service.kernels.penalties import Penalties
from inference_service.kernels.slot_state import SampledRows, SlotState, StateUpdate


def _state(width: int, vocab_size: int, device: torch.device) -> SlotState:
    """Five slots, and counts for two of them."""
    return SlotState(
        last_tokens=torch.zeros(5, dtype=torch.int64, device=device),
        page_table=torch.zeros(5, 3, dtype=torch.int32, device=device),
        history=torch.ones(5, width, dtype=torch.int32, device=device),
        counts=torch.ones(3, vocab_size, dtype=torch.int32, device=device),
    )


def _penalise(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Two of three rows of logits; a token is in a history more than once, and what is behind it is not read."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    history = torch.tensor([[2, 1, 2, 2, -1], [7, 7, 7, 7, -1], [5, 3, 0, 5, -1]]).int()
    state = SlotState(
        last_tokens=torch.zeros(0, device=device),
        page_table=torch.zeros(0, device=device),
        history=history.to(device),
        counts=torch.arange(2 * vocab_size).view(2, -1).remainder(5).int().to(device),
    )
    results = []
    for counts in (False, True):
        logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)).to(device)
        penalties = Penalties(
            rows=torch.tensor([2, 0]).to(device),
            slots=torch.tensor([0, 2]).to(device),
            count_bases=torch.tensor([0, vocab_size]).to(device),
            repetition=torch.tensor([1.3, 0.7]).to(device),
            frequency=torch.tensor([0.7, 0.0]).to(device),
            presence=torch.tensor([0.1, -0.3]).to(device),
            history_width=4,
            counts=counts,
        )
        run(logits, penalties, state)
        results.append(logits)
    return results


def _scaled_logits(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Three rows: with all penalties, without, and with counts that are those of nobody."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    state = _state(4, vocab_size, device)
    state.history[:3] = torch.tensor([[2, 1, 2, 2], [4, 4, 3, 9], [5, 3, 0, 5]]).int()
    state.counts[0] = 0
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)).to(device)
    columns = torch.tensor([[1.3, 0.7, 0.1, 0.8], [1.0, 0.0, 0.0, 1.0], [0.7, 0.0, 0.0, 2.5]])
    repetition, frequency, presence, temperature = columns.T.contiguous().to(device)
    rows = torch.arange(3)
    penalties = Penalties(
        rows=rows.to(device),
        slots=rows.flip(0).to(device),
        count_bases=torch.tensor([2 * vocab_size, 0, 0]).to(device),
        repetition=repetition,
        frequency=frequency,
        presence=presence,
        history_width=4,
        counts=True,
        lengths=torch.tensor([4, 0, 4]).int().to(device),
    )
    return [run(logits, temperature, penalties, state)]


def _choose_tokens(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Three rows of logits; with a minimum, only some tokens can be drawn."""
    results = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        logits = 4 * torch.randn(3, inputs.sizes.vocab_size, generator=generator)
        keys = torch.randint(-(2**31), 2**31, (2, 3), generator=generator, dtype=torch.int64).int()
        low, high = keys.to(inputs.device)
        minimum = (
            torch.tensor([[-torch.inf], [8.0], [12.0]]).to(inputs.device) if seed % 2 else None
        )
        results.append(run(logits.to(inputs.device), minimum, low, high))
        drawn = torch.tensor([1, 0, 1]).int().to(inputs.device)
        results.append(run(logits.to(inputs.device), minimum, low, high, drawn))
    return results


def _lowest_kept(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Which tokens of rows with every kind of filter are kept."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    generator = torch.Generator().manual_seed(2)
    # Few digits, so that some values are equal.
    logits = (4 * torch.randn(4, vocab_size, generator=generator)).round(decimals=1).to(device)
    log_min_p = torch.tensor([-3.0, -torch.inf, -torch.inf, -9.0])
    top_k = torch.tensor([vocab_size, vocab_size, 20, vocab_size // 2])
    top_p = torch.tensor([1.0, 0.9, 1.0, 0.999])
    lowest = run(logits, *(one.to(device) for one in (log_min_p, top_k, top_p)))
    return [(logits >= lowest).int()]


def _update_slots(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Rows that begin anew and get entries, and pages alone."""
    width, vocab_size = 9, 20
    state = _state(width, vocab_size, inputs.device)
    whole = ([1, 14], [5, 9], [2, 4], [6, 7], [18, 20, 40], [6, 8, 9], [2], [45, 59], [2, 1])
    for lists in (whole, ([3], [2], *[[]] * 7)):
        values = zip(fields(StateUpdate), lists, strict=True)
        short = {"pages", "history_first", "history_ids", "count_values"}
        dtypes = ((torch.int32 if one.name in short else torch.int64, few) for one, few in values)
        run(
            state, StateUpdate(*(torch.tensor(few, dtype=d).to(inputs.device) for d, few in dtypes))
        )
    return [state.page_table, state.history, state.counts]


def _record_tokens(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    width, vocab_size = 9, 20
    state = _state(width, vocab_size, inputs.device)
    rows = SampledRows(
        slots=torch.tensor([3, 0, 4]),
        history_rows=torch.tensor([0, 2]),
        history_places=torch.tensor([3 * width + 8, 4 * width]),
        count_rows=torch.tensor([2, 0]),
        count_bases=torch.tensor([2 * vocab_size, 0]),
    )
    rows = SampledRows(*(getattr(rows, one.name).to(inputs.device) for one in fields(rows)))
    run(state, torch.tensor([7, 19, 11]).to(inputs.device), rows)
    return [state.last_tokens, state.history, state.counts]


SAMPLING_CASES: Mapping[str, Callable[[Run, Inputs], Sequence[Tensor]]] = {
    "penalise": _penalise,
    "scaled_logits": _scaled_logits,
    "choose_tokens": _choose_tokens,
    "lowest_kept": _lowest_kept,
    "update_slots": _update_slots,
    "record_tokens": _record_tokens,
}
"""By operation: the results of an implementation for the inputs."""
