"""Penalties for the tokens of a prompt and an answer: the torch reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_service.kernels.slot_state import SlotState


@dataclass(frozen=True, slots=True)
class Penalties:
    """The penalties of P rows of logits.

    Attributes:
        rows: [P] int64, distinct.
        slots: [P] int64: their slots.
        count_bases: [P] int64: where their counts begin in the flattened `SlotState.counts`.
        repetition: [P] float32.
        frequency: [P] float32.
        presence: [P] float32.
        history_width: Entries of `SlotState.history` to read.
        counts: Whether any row has another penalty than for repetition.
        lengths: [P] int32: number of entries of each history, 0 = without penalties; behind them it repeats its first
            id. None = unknown.
    """

    rows: Tensor
    slots: Tensor
    count_bases: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    history_width: int
    counts: bool
    lengths: Tensor | None = None


def penalise(logits: Tensor, penalties: Penalties, state: SlotState) -> None:
    """Penalises the tokens of each row's history in place, where equal ids get equal values.

    Args:
        logits: [R, V] float32, contiguous.
        penalties: Those of some of the R rows.
        state: History and counts of the slots.
    """
    history = state.history[:, : penalties.history_width].index_select(0, penalties.slots)
    token_ids = history.long()
    places = token_ids + (penalties.rows * logits.shape[1]).unsqueeze(-1)
    flat = logits.view(-1)
    part = flat[places]
    repetition = penalties.repetition.unsqueeze(-1)
    part = torch.where(part > 0, part / repetition, part * repetition)
    if penalties.counts:
        of_token = token_ids + penalties.count_bases.unsqueeze(-1)
        count = state.counts.view(-1)[of_token].float()
        part -= penalties.frequency.unsqueeze(-1) * count
        part -= penalties.presence.unsqueeze(-1) * (count > 0)
    flat.index_put_((places,), part)


def scaled_logits(
    logits: Tensor, temperature: Tensor, penalties: Penalties, state: SlotState
) -> Tensor:
    """The logits of all rows with their penalties, divided by their temperatures.

    Args:
        logits: [R, V] float32, contiguous; not changed.
        temperature: [R] float32.
        penalties: Those of all R rows, in order, with lengths; those that are off leave a row as it is.
        state: History and counts of the slots.

    Returns:
        [R, V] float32.
    """
    scaled = logits.clone()
    penalise(scaled, penalties, state)
    return scaled.div_(temperature.unsqueeze(-1))
