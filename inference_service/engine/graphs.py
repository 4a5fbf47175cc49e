"""CUDA graphs of decode steps: recorded once for some batch sizes, and queued as a whole in every step.

A graph is a list of kernels with their arguments: at every replay it reads and writes the same addresses, and nothing
is computed on the host. So the inputs of a step are copied into tensors of the graph's own; weights, KV cache, page
table and last tokens stay where they are anyway.

A step of n sequences runs in the smallest graph with n rows or more. The other rows are padding: they belong to a slot
and a page of their own, which no sequence ever has, and nobody reads their results.

A graph ends with logits, and with the most likely token of every row, which is recorded as the last one of its slot. If
all sequences are greedy, that is all. Otherwise the sampler is queued behind the graph, and records what it chooses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.inputs import SequenceInput, pack
from inference_service.engine.staging import Array
from inference_service.kernels.attention import AttentionMetadata
from inference_service.kernels.slot_state import SampledRows, SlotState
from inference_service.models.batch import ForwardBatch, KVCache
from inference_service.models.vision_language import VisionLanguageModel


_ON_HOST: Final = np.empty(0, np.int32)
"""Lengths on the host: a graph must not depend on them."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the steps of all sizes share; it stays at its addresses.

    Attributes:
        model: The model.
        kv_cache: Its cache, with a page that no sequence has.
        state: The state of the slots, with a slot that no sequence has.
        page_size: Tokens of a page.
        max_model_len: Maximum number of tokens of a sequence.
        padding: The input of a row without a sequence: in that page and that slot.
        logits: [rows of the largest step, V] float32.
        token_ids: [rows of the largest step] int64.
    """

    model: VisionLanguageModel
    kv_cache: KVCache
    state: SlotState
    page_size: int
    max_model_len: int
    padding: SequenceInput
    logits: Tensor
    token_ids: Tensor


class DecodeStep:
    """A decode step of B rows, over tensors of its own.

    Attributes:
        rows: B.
        words: [N] int64: all inputs, as `pack` arranges them.
        logits: [B, V] float32.
        token_ids: [B] int64: the most likely tokens.
    """

    def __init__(self, rows: int, around: Surroundings) -> None:
        """Allocates the inputs; the results are shared by all sizes, as steps run one after the other."""
        self.rows = rows
        self.logits, self.token_ids = around.logits[:rows], around.token_ids[:rows]
        self._around = around
        self._with_rope_levels = around.model.spec.decoder.rope.ntk is not None
        device = around.model.device
        self.words = torch.from_numpy(self.pack([])).to(device)
        widths = [rows] * (7 if self._with_rope_levels else 6)
        *vectors, contexts = self.words.split_with_sizes([*widths, len(self.words) - sum(widths)])
        self._slots, self._known, slot_mapping = vectors[:3]
        self._positions = self.words[3 * rows : 6 * rows].view(3, rows)
        self._levels = vectors[6] if self._with_rope_levels else None
        self._slot_mapping = slot_mapping
        self._contexts = contexts.view(torch.int32)[:rows]
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        self._recorded = SampledRows(self._slots, nothing, nothing, nothing, nothing)

    def pack(self, inputs: Seq[SequenceInput]) -> Array:
        """The inputs of at most B sequences with one new token each, and of padding, as `words`."""
        around = self._around
        padded = [*inputs, *[around.padding] * (self.rows - len(inputs))]
        levels = self._with_rope_levels
        packed = pack(padded, page_size=around.page_size, with_rope_levels=levels)
        _, contexts, *vectors = packed.arrays[:-3]
        even = np.zeros(self.rows + self.rows % 2, np.int32)
        even[: self.rows] = contexts
        return np.concatenate([*(vector.reshape(-1) for vector in vectors), even.view(np.int64)])

    def compute(self) -> None:
        """Computes logits and most likely tokens, and records these; reads nothing but `words` and what stays."""
        around, state = self._around, self._around.state
        last = state.last_tokens.index_select(0, self._slots)
        batch = ForwardBatch(
            token_ids=torch.where(self._known < 0, last, self._known),
            positions=self._positions,
            attention=AttentionMetadata(
                slot_mapping=self._slot_mapping,
                page_table=state.page_table.index_select(0, self._slots),
                query_start=self._starts,
                context_lens=self._contexts,
                host_query_start=_ON_HOST,
                host_context_lens=_ON_HOST,
                max_query_len=1,
                max_context_len=around.max_model_len,
            ),
            rope_levels=self._levels,
        )
        hidden = around.model.forward(batch, around.kv_cache)
        around.model.logits(hidden, out=self.logits)
        torch.argmax(self.logits, dim=-1, out=self.token_ids)
        around.model.ops.record_tokens(state, self.token_ids, self._recorded)


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """A recorded step.

    Attributes:
        step: The step, for its tensors.
        replay: Queues it.
    """

    step: DecodeStep
    replay: Callable[[], None]

    def run(self, words: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Queues a step.

        Args:
            words: Its inputs on the device, from `DecodeStep.pack`.
            count: Number of its sequences.

        Returns:
            The most likely tokens [count] int64 and the logits [count, V] float32; valid until the next step.
        """
        self.step.words.copy_(words, non_blocking=True)
        self.replay()
        return self.step.token_ids[:count], self.step.logits[:count]


class DecodeGraphs:
    """The graphs that there are, by their number of rows."""

    def __init__(self, graphs: Mapping[int, DecodeGraph]) -> None:
        self._graphs = dict(sorted(graphs.items()))
        self.sizes: tuple[int, ...] = tuple(self._graphs)

    def fitting(self, count: int) -> DecodeGraph | None:
        """The smallest graph for a step of so many sequences; None if there is none."""
        place = bisect_left(self.sizes, count)
        return self._graphs[self.sizes[place]] if place < len(self.sizes) else None
