"""The slots of the running sequences: what the device must be told of them before a step, and what it records after it.

The scheduler gives a sequence a slot with every admission. Its tenant here is the sequence in that epoch: one that is
admitted again is another tenant, and everything about it is sent anew. All its tokens are known then.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inference_service.engine.row_settings import RowSettings
from inference_service.engine.sampling_table import (
    SampledRow,
    SamplingTable,
    Selection,
    Shape,
    is_counted,
    is_penalised,
)
from inference_service.engine.sequence import Sequence
from inference_service.engine.staging import Array
from inference_service.kernels.slot_state import SlotState


def new_state(
    num_slots: int,
    max_pages: int,
    max_len: int,
    vocab_size: int,
    device: torch.device,
    *,
    penalised: int = 0,
) -> SlotState:
    """A state with histories and counts for so many slots; see `Slots`."""
    return SlotState(
        last_tokens=torch.zeros(num_slots, dtype=torch.int64, device=device),
        page_table=torch.zeros(num_slots, max_pages, dtype=torch.int32, device=device),
        history=torch.zeros(penalised, max_len, dtype=torch.int32, device=device),
        counts=torch.zeros(1 + penalised, vocab_size, dtype=torch.int32, device=device),
    )


@dataclass(slots=True)
class Tenant:
    """Who has a slot.

    Attributes:
        sequence: The sequence.
        epoch: Its epoch.
        num_pages: Number of its pages that are in the page table.
        history_start: Number of distinct ids of the prompt, if any penalty applies.
        count_row: Its row in `SlotState.counts`; 0 = none.
    """

    sequence: Sequence
    epoch: int
    num_pages: int = 0
    history_start: int = 0
    count_row: int = 0


class Slots:
    """The tenants of all slots, and the state of the slots on the device.

    Attributes:
        state: The state.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        max_pages: int,
        max_len: int,
        vocab_size: int,
        device: torch.device,
        padding_page: int | None = None,
    ) -> None:
        """Allocates little: the memory of penalties grows with its use, unless graphs need it at fixed addresses.

        Args:
            num_slots: Maximum number of running sequences.
            max_pages: Maximum number of KV pages of a sequence.
            max_len: Maximum number of tokens of a sequence.
            vocab_size: Width of the logits.
            device: The device.
            padding_page: A page that no sequence has; with it there is one slot more, which has only that page, and
                all slots have their memory of penalties.
        """
        self._device = device
        self._max_len = max_len
        self._vocab_size = vocab_size
        self._tenants: list[Tenant | None] = [None] * num_slots
        self._table = SamplingTable(num_slots, vocab_size)
        self._count_bases = np.zeros(num_slots, np.int64)
        self._free_count_rows: list[int] = []
        if padding_page is None:
            self.state = new_state(num_slots, max_pages, max_len, vocab_size, device)
            return
        slots = num_slots + 1
        self.state = new_state(slots, max_pages, max_len, vocab_size, device, penalised=slots)
        self.state.page_table[num_slots] = padding_page
        self._free_count_rows += range(num_slots, 0, -1)

    def admit(self, sequences: Iterable[Sequence]) -> list[Array]:
        """Notes the sequences of a step; returns the fields of the `StateUpdate` that goes before it."""
        update = _Update()
        num_pages = self.state.page_table.shape[1]
        for sequence in sequences:
            tenant = self._tenants[sequence.slot]
            if tenant is None or tenant.sequence is not sequence or tenant.epoch != sequence.epoch:
                tenant = self._move_in(sequence, update)
            pages, sent = sequence.pages, tenant.num_pages
            if len(pages) > sent:
                place = sequence.slot * num_pages
                update.page_places += range(place + sent, place + len(pages))
                update.pages += pages[sent:]
                tenant.num_pages = len(pages)
        return update.arrays()

    def select(self, rows: Seq[SampledRow]) -> tuple[Selection, Shape, list[Array]]:
        """The settings of a step's rows of logits, what is known of them here, and the fields of `SampledRows`."""
        lengths = [self._tenant(row).history_start + row.num_answer_tokens for row in rows]
        selection, shape = self._table.select(rows, lengths, self._count_bases)
        slots = np.array([row.slot for row in rows], np.int64)
        of_rows = np.array(lengths, np.int64)[selection.penalty_rows]
        counted = selection.count_bases > 0
        recorded: list[Array] = [
            slots,
            selection.penalty_rows,
            selection.penalty_slots * self._max_len + of_rows,
            selection.penalty_rows[counted],
            selection.count_bases[counted],
        ]
        return selection, shape, recorded

    def whole(self, rows: Seq[SampledRow]) -> RowSettings | None:
        """The settings of all rows of a captured step; None if a row needs a bias. See `SamplingTable.whole`."""
        lengths = [self._tenant(row).history_start + row.num_answer_tokens for row in rows]
        slots = np.array([row.slot for row in rows], np.int64)
        # A probe may fill the context, and nothing is sampled behind it.
        places = slots * self._max_len + np.minimum(lengths, self._max_len - 1)
        return self._table.whole(rows, lengths, places, self._count_bases)

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Ends their tenancy, if they have any: they have ended, or what the device knows of them may be wrong."""
        for sequence in sequences:
            slot = sequence.slot
            tenant = self._tenants[slot] if slot >= 0 else None
            if tenant is not None and tenant.sequence is sequence:
                self._move_out(slot, tenant)

    def _tenant(self, row: SampledRow) -> Tenant:
        tenant = self._tenants[row.slot]
        assert tenant is not None, "sampled before it was admitted"
        return tenant

    def _move_in(self, sequence: Sequence, update: _Update) -> Tenant:
        slot, params = sequence.slot, sequence.sampling
        previous = self._tenants[slot]
        if previous is not None:
            self._move_out(slot, previous)
        tenant = Tenant(sequence, sequence.epoch)
        self._tenants[slot] = tenant
        constrained = sequence.constraint is not None
        self._table.set(slot, params, sequence.choice_index, constrained=constrained)
        if is_penalised(params):
            answer = sequence.token_ids[sequence.num_prompt_tokens :]
            distinct = np.unique(np.array(sequence.request.prompt_token_ids, np.int32))
            tenant.history_start = len(distinct)
            self._begin_history(slot, np.append(distinct, np.array(answer, np.int32)), update)
            if is_counted(params):
                tenant.count_row = self._begin_counts(np.array(answer, np.int64), update)
                self._count_bases[slot] = tenant.count_row * self._vocab_size
        return tenant

    def _move_out(self, slot: int, tenant: Tenant) -> None:
        self._tenants[slot] = None
        if tenant.count_row:
            self._count_bases[slot] = 0
            self._free_count_rows.append(tenant.count_row)

    def _begin_history(self, slot: int, token_ids: Array, update: _Update) -> None:
        rows, width = self.state.history.shape
        if slot >= rows:
            wanted = min(len(self._tenants), max(2 * rows, slot + 1))
            self.state.history = _grown(self.state.history, wanted)
        update.history_rows.append(slot)
        update.history_first.append(token_ids[0])
        update.history_places.append(slot * width + np.arange(len(token_ids)))
        update.history_ids.append(token_ids)

    def _begin_counts(self, answer: Array, update: _Update) -> int:
        """Counts an answer so far; returns its row."""
        if not self._free_count_rows:
            rows = len(self.state.counts)
            grown = min(len(self._tenants) + 1, 2 * rows)
            self.state.counts = _grown(self.state.counts, grown)
            self._free_count_rows += range(grown - 1, rows - 1, -1)
        row = self._free_count_rows.pop()
        token_ids, counts = np.unique(answer, return_counts=True)
        update.count_rows.append(row)
        update.count_places.append(row * self._vocab_size + token_ids)
        update.count_values.append(counts)
        return row


class _Update:
    """The fields of a `StateUpdate`, collected."""

    def __init__(self) -> None:
        self.page_places: list[int] = []
        self.pages: list[int] = []
        self.history_rows: list[int] = []
        self.history_first: list[int] = []
        self.history_places: list[Array] = []
        self.history_ids: list[Array] = []
        self.count_rows: list[int] = []
        self.count_places: list[Array] = []
        self.count_values: list[Array] = []

    def arrays(self) -> list[Array]:
        return [
            np.array(self.page_places, np.int64),
            np.array(self.pages, np.int32),
            np.array(self.history_rows, np.int64),
            np.array(self.history_first, np.int32),
            _joined(self.history_places, np.int64),
            _joined(self.history_ids, np.int32),
            np.array(self.count_rows, np.int64),
            _joined(self.count_places, np.int64),
            _joined(self.count_values, np.int32),
        ]


def _joined(parts: Seq[Array], dtype: type[np.integer[Any]]) -> Array:
    return np.concatenate(parts, dtype=dtype) if parts else np.empty(0, dtype)


def _grown(rows: torch.Tensor, count: int) -> torch.Tensor:
    """[R, N] with `count` rows; the new ones are zeros."""
    grown = torch.zeros(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
    grown[: len(rows)] = rows
    return grown
