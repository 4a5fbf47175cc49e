"""The sampling settings of all rows of a step, as arrays whose sizes depend on the number of rows alone.

For steps that are captured: every row goes through the same operations, where settings that are off change nothing.
`engine.sampler`, which launches what some rows need, chooses the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from inference_service.kernels.ops import Ops
from inference_service.kernels.penalties import Penalties
from inference_service.kernels.slot_state import SampledRows, SlotState


NUM_LONGS: Final = 3
NUM_INTS: Final = 4
NUM_FLOATS: Final = 6


@dataclass(frozen=True, slots=True)
class RowSettings:
    """The settings of R rows: arrays on the host, or tensors on the device. Each consists of rows of R numbers.

    Attributes:
        longs: [3, R] int64: where the token is recorded in the flattened `SlotState.history`; where the counts begin
            in the flattened `SlotState.counts`, 0 = none; `top_k`, V = off.
        ints: [4, R] int32: low and high half of the key of the noise; number of entries of the history, 0 = no
            penalty; 1 if the row is drawn, 0 if it is greedy.
        floats: [6, R] float32: temperature, `log_min_p` as of `kernels.filters.lowest_kept`, `top_p`, repetition,
            frequency and presence penalty.
    """

    longs: Any
    ints: Any
    floats: Any

    def padded(self, others: RowSettings) -> RowSettings:
        """These settings, and those of the rows of `others` behind them."""
        count = self.longs.shape[1]
        pairs = ((self.longs, others.longs), (self.ints, others.ints), (self.floats, others.floats))
        return RowSettings(*(np.concatenate((one, more[:, count:]), 1) for one, more in pairs))


def greedy_rows(count: int, *, vocab_size: int, history_place: int) -> RowSettings:
    """Rows whose most likely token is chosen, and recorded where nobody reads it."""
    longs = np.array([history_place, 0, vocab_size], np.int64)
    floats = np.array([1.0, -math.inf, 1.0, 1.0, 0.0, 0.0], np.float32)
    return RowSettings(
        np.repeat(longs[:, None], count, 1),
        np.zeros((NUM_INTS, count), np.int32),
        np.repeat(floats[:, None], count, 1),
    )


def choose(logits: Tensor, slots: Tensor, rows: RowSettings, state: SlotState, ops: Ops) -> Tensor:
    """Chooses a token for each row, by a fixed sequence of operations.

    Args:
        logits: [R, V] float32, contiguous; not changed.
        slots: [R] int64: the slots of the rows.
        rows: Their settings, on the device.
        state: The state of the slots; all of them have a history.
        ops: The operations.

    Returns:
        [R] int64.
    """
    _, count_bases, top_k = rows.longs.unbind()
    low, high, lengths, drawn = rows.ints.unbind()
    temperature, log_min_p, top_p, repetition, frequency, presence = rows.floats.unbind()
    penalties = Penalties(
        torch.arange(len(slots), device=slots.device),
        slots,
        count_bases,
        repetition,
        frequency,
        presence,
        history_width=state.history.shape[1],
        counts=True,
        lengths=lengths,
    )
    scaled = ops.scaled_logits(logits, temperature, penalties, state)
    minimum = ops.lowest_kept(scaled, log_min_p, top_k, top_p)
    return ops.choose_tokens(scaled, minimum, low, high, drawn)


def recorded(slots: Tensor, rows: RowSettings) -> SampledRows:
    """Where the tokens of all rows are recorded."""
    history_places, count_bases, _ = rows.longs.unbind()
    every = torch.arange(len(slots), device=slots.device)
    return SampledRows(slots, every, history_places, every, count_bases)
