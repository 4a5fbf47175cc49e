"""Packing of a step's inputs: the values, and buffers that stay where they are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import torch

from inference_service.engine.inputs import InputBuffers, SequenceInput


CPU = torch.device("cpu")
PAGE_SIZE, MAX_TOKENS, MAX_SEQS, MAX_PAGES = 4, 40, 5, 9


def new_buffers(*, with_rope_levels: bool = False) -> InputBuffers:
    return InputBuffers(
        max_tokens=MAX_TOKENS,
        max_seqs=MAX_SEQS,
        max_pages=MAX_PAGES,
        page_size=PAGE_SIZE,
        device=CPU,
        with_rope_levels=with_rope_levels,
    )


@st.composite
def sequences(draw) -> SequenceInput:
    start, new = draw(st.integers(0, 28)), draw(st.integers(1, 8))
    some = st.integers(0, 2**40)
    num_pages = draw(st.integers(-(-(start + new) // PAGE_SIZE), MAX_PAGES))
    # Pages far enough up that page * page_size does not fit in 32 bits.
    pages = st.lists(st.integers(0, 2**31 - 1), min_size=num_pages, max_size=num_pages)
    return SequenceInput(
        token_ids=draw(st.lists(some, min_size=new, max_size=new)),
        positions=np.array(draw(st.lists(some, min_size=3 * new, max_size=3 * new))).reshape(3, -1),
        start=start,
        pages=draw(pages),
        rope_level=draw(st.integers(0, 3)),
    )


BUFFERS = new_buffers(with_rope_levels=True)
"""Shared by all examples: what one leaves behind must not show in the next."""


@settings(max_examples=150, deadline=None)
@given(st.lists(sequences(), min_size=1, max_size=MAX_SEQS))
def test_a_batch_is_its_sequences_one_after_the_other(inputs: list[SequenceInput]) -> None:
    batch = BUFFERS.pack(inputs)
    meta = batch.attention
    lengths = [len(sequence.token_ids) for sequence in inputs]
    assert batch.token_ids.tolist() == [i for sequence in inputs for i in sequence.token_ids]
    expected = np.concatenate([sequence.positions for sequence in inputs], axis=1)
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
    width = max(len(sequence.pages) for sequence in inputs)
    assert meta.page_table.tolist() == [
        [*sequence.pages, *[0] * (width - len(sequence.pages))] for sequence in inputs
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


def sequence_of(tokens: int, start: int = 0) -> SequenceInput:
    return SequenceInput([7] * tokens, np.ones((3, tokens), np.int64), start, range(MAX_PAGES))


def test_every_step_uses_the_same_memory() -> None:
    buffers = new_buffers()
    addresses = set()
    for inputs in ([sequence_of(9), sequence_of(1, 5)], [sequence_of(1, 3)], [sequence_of(40 - 4)]):
        batch = buffers.pack(inputs, [0], [torch.ones(1, 8)])
        meta = batch.attention
        assert batch.image_rows is not None
        tensors = (
            batch.token_ids,
            batch.positions,
            batch.image_rows,
            buffers.rows([0]),
            meta.slot_mapping,
            meta.page_table,
            meta.query_start,
            meta.context_lens,
        )
        addresses.add(tuple(tensor.data_ptr() for tensor in tensors))
        assert np.shares_memory(meta.host_context_lens, meta.context_lens.numpy())
    assert len(addresses) == 1


def test_image_rows_and_embeddings_are_packed() -> None:
    batch = new_buffers().pack(
        [sequence_of(6)], [1, 2, 4], [torch.ones(2, 8), torch.full((1, 8), 2.0)]
    )
    assert batch.image_rows is not None
    assert batch.image_embeddings is not None
    assert batch.image_rows.tolist() == [1, 2, 4]
    assert batch.image_embeddings[:, 0].tolist() == [1, 1, 2]
    batch = new_buffers().pack([sequence_of(6)])
    assert batch.image_rows is batch.image_embeddings is batch.rope_levels is None


def test_buffers_can_be_full() -> None:
    batch = new_buffers().pack([sequence_of(8, 28)] * MAX_SEQS)
    assert batch.token_ids.shape == (MAX_TOKENS,)
    assert batch.attention.page_table.shape == (MAX_SEQS, MAX_PAGES)
