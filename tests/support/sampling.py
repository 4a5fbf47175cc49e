"""Samples rows of logits by way of slots, as the engine does, from rows as the reference sampler takes them."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from inference_service.engine.constraint_state import ConstraintState
from inference_service.engine.masks import TokenMask
from inference_service.engine.noise import noise_keys, noise_state
from inference_service.engine.sampler import sample_
from inference_service.engine.sampling_table import SampledRow, Selection, Shape
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine.staging import Staging
from inference_service.engine_protocol.messages import EngineRequest
from inference_service.kernels.slot_state import SampledRows, StateUpdate, update_slots
from tests.support.reference_sampler import SamplingRow


CPU = torch.device("cpu")
MAX_LEN = 64


def sequence_of(row: SamplingRow, slot: int) -> Sequence:
    """A running sequence with this prompt, answer and settings."""
    request = EngineRequest(
        request_id=str(slot), prompt_token_ids=tuple(row.prompt), sampling=row.params
    )
    sequence = Sequence(request, row.choice_index, slot=slot)
    sequence.token_ids += row.answer
    if row.is_masked or row.awaits_mask:
        # Only what the sampler asks for: whether the constraint applies yet.
        sequence.constraint = ConstraintState(None, None if row.is_masked else 0)  # type: ignore[arg-type]
    return sequence


def sampled_row(sequence: Sequence) -> SampledRow:
    """The row of its next token."""
    return SampledRow(
        sequence.slot,
        sequence.num_answer_tokens,
        is_masked=sequence.is_masked,
        awaits_mask=sequence.awaits_mask,
        excluded=sequence.completes_bad_words,
    )


def new_slots(num_slots: int, vocab_size: int) -> Slots:
    """Slots for sequences without pages."""
    return Slots(num_slots, max_pages=1, max_len=MAX_LEN, vocab_size=vocab_size, device=CPU)


def prepare(
    slots: Slots, sequences: Seq[Sequence], staging: Staging
) -> tuple[Selection, Shape, SampledRows]:
    """Brings the sequences up to date on the device, and the settings of their rows."""
    update = slots.admit(sequences)
    selection, shape, recorded = slots.select([sampled_row(one) for one in sequences])
    arrays = [*update, *recorded, *selection.arrays]
    sent = staging.send(arrays)
    update_slots(slots.state, StateUpdate(*sent[: len(update)]))
    sent = sent[len(update) :]
    return Selection(*sent[len(recorded) :]), shape, SampledRows(*sent[: len(recorded)])


def sample(
    logits: torch.Tensor,
    rows: Seq[SamplingRow],
    mask: TokenMask | None = None,
    *,
    looks: bool | None = None,
) -> torch.Tensor:
    """One token per row, from new slots; the logits are not changed."""
    sequences = [sequence_of(row, slot) for slot, row in enumerate(rows)]
    slots = new_slots(len(rows), logits.shape[1])
    selection, shape, _ = prepare(slots, sequences, Staging(CPU))
    return sample_(logits.clone(), selection, shape, slots.state, mask, looks=looks)


def keys_of(keys: Seq[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves of the keys of (seed, choice, position) triples: [R] int32 each."""
    states = np.array([noise_state(seed, choice) for seed, choice, _ in keys], np.uint64)
    low, high = noise_keys(states, np.array([position for _, _, position in keys]))
    return torch.from_numpy(low.copy()), torch.from_numpy(high.copy())
