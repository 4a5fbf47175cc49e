"""Packs the new tokens of a step's sequences into one batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from inference_service.engine.staging import Array
from inference_service.kernels.attention import AttentionMetadata
from inference_service.kernels.slot_state import SlotState
from inference_service.models.batch import ForwardBatch


UNKNOWN: Final = -1
"""A token id that the host does not know: the slot's last token."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The n new tokens of one sequence.

    Attributes:
        token_ids: The n ids; a single one may be `UNKNOWN`.
        start: Number of tokens of the sequence that are already in the cache.
        pages: Its KV pages in order, for start + n tokens or more.
        slot: Its slot, whose row of the page table has these pages or gets them before the forward pass.
        positions: [3, m] int64, m <= n: positions on the time, height and width axis of the first m tokens.
        delta: Position minus index, for the tokens after them.
        rope_level: Level of its rotary frequencies.
    """

    token_ids: Seq[int]
    start: int
    pages: Seq[int]
    slot: int = 0
    positions: Ints | None = None
    delta: int = 0
    rope_level: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """A step's inputs on the host.

    Attributes:
        arrays: The arrays to be sent; those whose sizes depend only on the numbers of sequences and tokens come first.
        host_query_start: See `AttentionMetadata`.
        host_context_lens: See `AttentionMetadata`.
        max_query_len: See `AttentionMetadata`.
        num_pages: Maximum number of pages of a sequence.
    """

    arrays: list[Array]
    host_query_start: npt.NDArray[np.int32]
    host_context_lens: npt.NDArray[np.int32]
    max_query_len: int
    num_pages: int


def pack(
    inputs: Seq[SequenceInput],
    image_rows: Seq[int] = (),
    *,
    page_size: int,
    with_rope_levels: bool = False,
) -> Packed:
    """Packs the sequences into one batch, in order.

    Args:
        inputs: At least one sequence, each with at least one token.
        image_rows: Distinct rows of the batch that are image tokens.
        page_size: Tokens in a page.
        with_rope_levels: Whether the model's rotary frequencies depend on the level of a sequence.
    """
    lengths = [len(sequence.token_ids) for sequence in inputs]
    ends = [0, *accumulate(lengths)]
    num_tokens = ends[-1]
    starts = np.array([sequence.start for sequence in inputs], np.int64)
    contexts = starts + lengths
    deltas = np.array([sequence.delta for sequence in inputs], np.int64)
    if num_tokens == len(inputs):  # one token each
        token_ids = [sequence.token_ids[0] for sequence in inputs]
        pages = [sequence.pages[sequence.start // page_size] for sequence in inputs]
        index, of_pages = starts, np.array(pages, np.int64)
    else:
        token_ids = [token_id for sequence in inputs for token_id in sequence.token_ids]
        index = np.arange(num_tokens) + np.repeat(starts - ends[:-1], lengths)
        of_pages = np.concatenate([_pages_of(one, page_size) for one in inputs])
        deltas = np.repeat(deltas, lengths)
    slot_mapping = of_pages * page_size + index % page_size
    slots = np.array([sequence.slot for sequence in inputs], np.int64)
    known = np.array(token_ids, np.int64)
    [unknown_rows] = (known < 0).nonzero()
    arrays: list[Array] = [
        np.array(ends, np.int32),
        contexts.astype(np.int32),
        slots,
        known,
        slot_mapping,
        _positions(inputs, ends, index + deltas),
    ]
    if with_rope_levels:
        levels = np.array([sequence.rope_level for sequence in inputs], np.int64)
        arrays.append(np.repeat(levels, lengths))
    # Only a sequence's first row may be unknown, as it is the only one then.
    unknown_slots = slots[np.searchsorted(ends, unknown_rows)]
    arrays += [unknown_rows, unknown_slots, np.array(image_rows, np.int64)]
    return Packed(
        arrays,
        host_query_start=arrays[0],
        host_context_lens=arrays[1],
        max_query_len=max(lengths),
        num_pages=-(-int(contexts.max()) // page_size),
    )


def _pages_of(sequence: SequenceInput, page_size: int) -> Ints:
    """The page of each new token."""
    start, end = sequence.start, sequence.start + len(sequence.token_ids)
    first, last = start // page_size, -(-end // page_size)
    pages = np.array(sequence.pages[first:last], np.int64)
    return np.repeat(pages, page_size)[start - first * page_size :][: end - start]


def _positions(inputs: Seq[SequenceInput], ends: Seq[int], further: Ints) -> Ints:
    """[3, T]: positions, where `further` [T] are those of the tokens that have none of their own."""
    positions = np.empty((3, len(further)), np.int64)
    positions[:] = further
    for sequence, row in zip(inputs, ends, strict=False):
        if sequence.positions is not None:
            positions[:, row : row + sequence.positions.shape[1]] = sequence.positions
    return positions


def batch_of(
    packed: Packed,
    sent: Seq[Tensor],
    state: SlotState,
    image_embeddings: Tensor | None = None,
) -> ForwardBatch:
    """The batch of inputs that were sent; the state has got its changes.

    Args:
        packed: The inputs on the host.
        sent: Their tensors.
        state: Page table and last tokens.
        image_embeddings: Embeddings of the image rows.
    """
    query_start, context_lens, slots, token_ids, slot_mapping, positions, *levels = sent[:-3]
    unknown_rows, unknown_slots, image_rows = sent[-3:]
    if len(unknown_rows):
        token_ids.index_copy_(0, unknown_rows, state.last_tokens.index_select(0, unknown_slots))
    return ForwardBatch(
        token_ids=token_ids,
        positions=positions.view(3, -1),
        attention=AttentionMetadata(
            slot_mapping=slot_mapping,
            page_table=state.page_table[:, : packed.num_pages].index_select(0, slots),
            query_start=query_start,
            context_lens=context_lens,
            host_query_start=packed.host_query_start,
            host_context_lens=packed.host_context_lens,
            max_query_len=packed.max_query_len,
            max_context_len=int(packed.host_context_lens.max()),
        ),
        image_rows=image_rows if len(image_rows) else None,
        image_embeddings=image_embeddings,
        rope_levels=levels[0] if levels else None,
    )
