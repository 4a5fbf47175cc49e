"""Packing of a step's inputs: the values, and buffers that stay where they are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import torch

from inference_service.engine.inputs import UNKNOWN, SequenceInput, batch_of, pack
from inference_service.engine.slots import new_state
from inference_service.engine.staging import Array, Staging
from inference_service.kernels.slot_state import SlotState
from inference_service.models.batch import ForwardBatch


CPU = torch.device("cpu")
PAGE_SIZE, MAX_SEQS, MAX_PAGES = 4, 5, 9
STAGING = Staging(CPU)
"""Shared by all examples: what one leaves behind must not show in the next."""


def state_of(inputs: list[SequenceInput]) -> SlotState:
    """A state in which the pages of the sequences have arrived, and slot s has chosen token 1000 + s."""
    state = new_state(MAX_SEQS, MAX_PAGES, 36, 2000, CPU)
    state.last_tokens += torch.arange(1000, 1000 + MAX_SEQS)
    for sequence in inputs:
        pages = torch.tensor(list(sequence.pages), dtype=torch.int32)
        state.page_table[sequence.slot, : len(pages)] = pages
    return state


def packed_batch(inputs: list[SequenceInput], **options) -> ForwardBatch:
    packed = pack(inputs, page_size=PAGE_SIZE, **options)
    return batch_of(packed, STAGING.send(packed.arrays), state_of(inputs))


@st.composite
def sequences(draw, slot: int) -> SequenceInput:
    start, new = draw(st.integers(0, 28)), draw(st.integers(1, 8))
    some = st.integers(0, 2**40)
    num_pages = draw(st.integers(-(-(start + new) // PAGE_SIZE), MAX_PAGES))
    # Pages far enough up that page * page_size does not fit in 32 bits.
    pages = st.lists(st.integers(0, 2**31 - 1), min_size=num_pages, max_size=num_pages)
    placed = draw(st.integers(0, new))
    positions = draw(st.lists(some, min_size=3 * placed, max_size=3 * placed))
    is_unknown = new == 1 and draw(st.booleans())
    token_ids = [UNKNOWN] if is_unknown else draw(st.lists(some, min_size=new, max_size=new))
    return SequenceInput(
        token_ids=token_ids,
        start=start,
        pages=draw(pages),
        slot=slot,
        positions=np.array(positions, np.int64).reshape(3, -1) if placed else None,
        delta=draw(st.integers(-5, 100)),
        rope_level=draw(st.integers(0, 3)),
    )


@st.composite
def batches(draw) -> list[SequenceInput]:
    slots = draw(st.lists(st.integers(0, MAX_SEQS - 1), min_size=1, unique=True))
    return [draw(sequences(slot)) for slot in slots]


def positions_of(sequence: SequenceInput) -> np.ndarray:
    """The long way round: [3, n]."""
    n = len(sequence.token_ids)
    positions = np.arange(sequence.start, sequence.start + n) + sequence.delta
    positions = np.stack([positions] * 3)
    if sequence.positions is not None:
        positions[:, : sequence.positions.shape[1]] = sequence.positions
    return positions


@settings(max_examples=150, deadline=None)
@given(batches())
def test_a_batch_is_its_sequences_one_after_the_other(inputs: list[SequenceInput]) -> None:
    batch = packed_batch(inputs, with_rope_levels=True)
    meta = batch.attention
    lengths = [len(sequence.token_ids) for sequence in inputs]
    assert batch.token_ids.tolist() == [
        1000 + sequence.slot if i == UNKNOWN else i
        for sequence in inputs
        for i in sequence.token_ids
    ]
    expected = np.concatenate([positions_of(sequence) for sequence in inputs], axis=1)
    assert np.array_equal(batch.positions.numpy(), expected)
    assert batch.rope_levels is not None
    assert batch.rope_levels.tolist() == [
        sequence.rope_level for sequence in inputs for _ in sequence.token_ids
    ]
    assert meta.query_start.tolist() == meta.host_query_start.tolist()
    assert meta.query_start.tolist() == [sum(lengths[:s]) for s in range(len(inputs) + 1)]
    contexts = [sequence.start + new for sequence, new in zip(inputs, lengths, strict=True)]
    assert meta.context_lens.tolist() == meta.host_context_lens.tolist() == contexts
    assert (meta.max_query_len, meta.max_context_len) == (max(lengths), max(contexts))
    width = -(-max(contexts) // PAGE_SIZE)
    assert meta.page_table.tolist() == [
        [*sequence.pages, *[0] * MAX_PAGES][:width] for sequence in inputs
    ]
    assert meta.slot_mapping.tolist() == [
        sequence.pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
        for sequence, context in zip(inputs, contexts, strict=True)
        for at in range(sequence.start, context)
    ]
    kinds = {tensor.dtype for tensor in (batch.token_ids, batch.positions, meta.slot_mapping)}
    assert kinds == {torch.int64}
    kinds = {tensor.dtype for tensor in (meta.page_table, meta.query_start, meta.context_lens)}
    assert kinds == {torch.int32}


def sequence_of(tokens: int, start: int = 0, slot: int = 0) -> SequenceInput:
    return SequenceInput([7] * tokens, start, range(MAX_PAGES), slot)


def test_image_rows_are_packed() -> None:
    batch = packed_batch([sequence_of(6)], image_rows=[1, 2, 4])
    assert batch.image_rows is not None
    assert batch.image_rows.tolist() == [1, 2, 4]
    batch = packed_batch([sequence_of(6)])
    assert batch.image_rows is batch.image_embeddings is batch.rope_levels is None


def test_equal_steps_are_at_the_same_addresses_whatever_follows_them() -> None:
    """As graphs of a GPU need it; the buffers of a CPU take turns."""
    staging = Staging(CPU)
    addresses = []
    for start in (3, 5, 9, 20):
        packed = pack([sequence_of(1, start), sequence_of(1, start, 1)], page_size=PAGE_SIZE)
        tensors = staging.send([*packed.arrays, np.arange(start)])
        addresses.append([tensor.data_ptr() for tensor in tensors[:6]])
    assert addresses[0] == addresses[2] != addresses[1] == addresses[3]


def test_what_is_sent_arrives_whatever_the_sizes_and_kinds() -> None:
    staging = Staging(CPU)
    for size in (0, 1, 3, 40_000, 2, 90_000):
        arrays: list[Array] = [
            np.arange(size, dtype=np.int32),
            np.arange(2 * size).reshape(2, -1),
            np.arange(size, dtype=np.float32) / 3,
            np.empty(0, np.int64),
            np.arange(size, dtype=np.int64)[::-1],
        ]
        for array, tensor in zip(arrays, staging.send(arrays), strict=True):
            assert np.array_equal(array.reshape(-1), tensor.numpy())
            assert str(tensor.dtype) == f"torch.{array.dtype}"
