"""Packs the new tokens of a step's sequences into one batch, in persistent buffers."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference_service.kernels.attention import AttentionMetadata
from inference_service.models.batch import ForwardBatch


Scalar = TypeVar("Scalar", np.int32, np.int64)


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The n new tokens of one sequence.

    Attributes:
        token_ids: The n ids.
        positions: [3, n] int64: position on the time, height and width axis.
        start: Number of tokens of the sequence that are already in the cache.
        pages: Its KV pages in order, for start + n tokens or more.
        rope_level: Level of its rotary frequencies.
    """

    token_ids: Seq[int]
    positions: npt.NDArray[np.int64]
    start: int
    pages: Seq[int]
    rope_level: int = 0


class Fence:
    """A point in the work queued on a device, for which the host can wait; on a CPU nothing is queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch does not annotate its constructor.
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """Moves the fence to the end of the work that is queued now."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Blocks until the work before the fence is complete; returns at once if it was never recorded."""
        if self._event is not None:
            self._event.synchronize()


class InputBuffers:
    """Buffers for the inputs of one step, allocated once, so that the tensors of all steps have the same addresses.

    A step fills numpy views on the host, from which slices are copied to the device asynchronously; on a CPU both are
    the same memory. The results of `pack` and `rows` are valid until the next call of `pack` on the same buffers, for
    work that was queued on the device before it. `pack` waits for the copies of its previous call, but not for what
    reads them: alternate between two `InputBuffers` to pack a step while the device computes the previous one.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_seqs: int,
        max_pages: int,
        page_size: int,
        device: torch.device,
        with_rope_levels: bool = False,
    ) -> None:
        """Allocates about `8 * (6 * max_tokens + max_seqs) + 4 * max_seqs * (max_pages + 2)` bytes.

        Args:
            max_tokens: Maximum number of new tokens of a step.
            max_seqs: Maximum number of sequences of a step.
            max_pages: Maximum number of KV pages of a sequence.
            page_size: Tokens in a page.
            device: Device of the batches.
            with_rope_levels: Whether the model's rotary frequencies depend on the level of a sequence.
        """
        self._page_size = page_size
        self._max_pages = max_pages
        self._with_rope_levels = with_rope_levels
        self._uploaded = Fence(device)
        self._token_ids = _Buffer(max_tokens, np.int64, device)
        self._positions = _Buffer(3 * max_tokens, np.int64, device)
        self._rope_levels = _Buffer(max_tokens, np.int64, device)
        self._image_rows = _Buffer(max_tokens, np.int64, device)
        self._rows = _Buffer(max_seqs, np.int64, device)
        self._slot_mapping = _Buffer(max_tokens, np.int64, device)
        self._page_table = _Buffer(max_seqs * max_pages, np.int32, device)
        self._query_start = _Buffer(max_seqs + 1, np.int32, device)
        self._context_lens = _Buffer(max_seqs, np.int32, device)

    def pack(
        self,
        inputs: Seq[SequenceInput],
        image_rows: Seq[int] = (),
        image_embeddings: Seq[Tensor] = (),
    ) -> ForwardBatch:
        """Pack the sequences into one batch, in order, once the copies of the previous batch are complete.

        Args:
            inputs: At least one sequence, each with at least one token.
            image_rows: Distinct rows of the batch that are image tokens.
            image_embeddings: Embeddings for these rows in parts, each [rows of the part, hidden * (1 + D)].
        """
        self._uploaded.wait()
        # Before the copies are queued, as it may run out of memory, and the fence is recorded after them.
        embeddings = torch.cat(list(image_embeddings)) if image_embeddings else None
        lengths = [len(sequence.token_ids) for sequence in inputs]
        num_tokens = sum(lengths)
        token_ids = [token_id for sequence in inputs for token_id in sequence.token_ids]
        self._token_ids.host[:num_tokens] = token_ids
        positions = self._positions.host[: 3 * num_tokens].reshape(3, num_tokens)
        np.concatenate([sequence.positions for sequence in inputs], axis=1, out=positions)
        if self._with_rope_levels:
            levels = [sequence.rope_level for sequence in inputs]
            self._rope_levels.host[:num_tokens] = np.repeat(levels, lengths)
        batch = ForwardBatch(
            token_ids=self._token_ids.upload(num_tokens),
            positions=self._positions.upload(3 * num_tokens).view(3, num_tokens),
            attention=self._pack_attention(inputs, lengths),
            image_rows=self._image_rows.fill(image_rows) if image_rows else None,
            image_embeddings=embeddings,
            rope_levels=self._rope_levels.upload(num_tokens) if self._with_rope_levels else None,
        )
        self._uploaded.record()
        return batch

    def rows(self, rows: Seq[int]) -> Tensor:
        """Copy the rows of the batch to be sampled, at most one per sequence, to the device: [R] int64."""
        uploaded = self._rows.fill(rows)
        self._uploaded.record()
        return uploaded

    def _pack_attention(self, inputs: Seq[SequenceInput], lengths: Seq[int]) -> AttentionMetadata:
        num_seqs, num_tokens = len(inputs), sum(lengths)
        width = max(len(sequence.pages) for sequence in inputs)
        table = self._page_table.host.reshape(-1, self._max_pages)[:num_seqs, :width]
        table[:] = 0
        for row, sequence in enumerate(inputs):
            table[row, : len(sequence.pages)] = sequence.pages
        ends = list(accumulate(lengths))
        contexts = [sequence.start + n for sequence, n in zip(inputs, lengths, strict=True)]
        # Index of each new token in its sequence: its row in the batch and what lies before the sequence's first row.
        owners = np.repeat(np.arange(num_seqs), np.array(lengths))
        before = np.array(contexts) - np.array(ends)
        page, offset = np.divmod(np.arange(num_tokens) + before[owners], self._page_size)
        slots = self._slot_mapping.host[:num_tokens]
        np.multiply(table[owners, page], self._page_size, out=slots, dtype=np.int64)
        slots += offset
        return AttentionMetadata(
            slot_mapping=self._slot_mapping.upload(num_tokens),
            page_table=self._page_table.upload(num_seqs * self._max_pages).view(num_seqs, -1)[
                :, :width
            ],
            query_start=self._query_start.fill([0, *ends]),
            context_lens=self._context_lens.fill(contexts),
            host_query_start=self._query_start.host[: num_seqs + 1],
            host_context_lens=self._context_lens.host[:num_seqs],
            max_query_len=max(lengths),
            max_context_len=max(contexts),
        )


class _Buffer(Generic[Scalar]):
    """Integers on the host (pinned for CUDA) and on the device; on a CPU they are the same memory.

    Attributes:
        host: The buffer on the host as a numpy array.
    """

    def __init__(self, size: int, dtype: type[Scalar], device: torch.device) -> None:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        self._source = torch.zeros(size, dtype=kind, pin_memory=device.type == "cuda")
        self._target = (
            self._source if device.type == "cpu" else torch.zeros(size, dtype=kind, device=device)
        )
        self.host: npt.NDArray[Scalar] = self._source.numpy()
        # The last slices: successive decode steps have equal sizes, and slicing a tensor takes microseconds.
        self._count = 0
        self._sent, self._received = self._source[:0], self._target[:0]

    def upload(self, count: int) -> Tensor:
        """Copy the first `count` integers to the device, asynchronously."""
        if count != self._count:
            self._count = count
            self._sent, self._received = self._source[:count], self._target[:count]
        if self._target is not self._source:
            self._received.copy_(self._sent, non_blocking=True)
        return self._received

    def fill(self, values: Seq[int]) -> Tensor:
        """Write integers to the beginning of the buffer and copy them to the device."""
        self.host[: len(values)] = values
        return self.upload(len(values))
