"""CUDA graphs of decode steps: recorded once for some batch sizes, and queued as a whole in every step.

A graph is a list of kernels with their arguments: at every replay it reads and writes the same addresses, and nothing
is computed on the host. So the inputs of a step are copied into tensors of the graph's own; weights, KV cache, page
table and last tokens stay where they are anyway.

A step of n sequences runs in the smallest graph with n rows or more. The other rows are padding: they belong to a slot
and a page of their own, which no sequence ever has, and nobody reads their results.

A graph ends with logits, and with the token that is sampled from each row, which is recorded in its slot. Where a row
needs what its settings cannot tell, such as a mask, all are taken for greedy, and the sampler is queued behind the
graph and records what it chooses. So it is, too, where a kernel is left out that sampling in a graph needs: then the
graph ends with the most likely tokens.
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
from inference_service.engine.row_settings import (
    NUM_FLOATS,
    NUM_INTS,
    NUM_LONGS,
    RowSettings,
    choose,
    greedy_rows,
    recorded,
)
from inference_service.engine.staging import Array
from inference_service.kernels.attention import AttentionMetadata
from inference_service.kernels.ops import Ops
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
        token_ids: [B] int64: the tokens that were chosen.
        samples: It samples as the settings of its rows tell; else it chooses the most likely tokens.
    """

    def __init__(self, rows: int, around: Surroundings) -> None:
        """Allocates the inputs; the results are shared by all sizes, as steps run one after the other."""
        self.rows = rows
        self.logits, self.token_ids = around.logits[:rows], around.token_ids[:rows]
        self.samples = around.model.ops.samples_in_graphs
        self._around = around
        self._with_rope_levels = around.model.spec.decoder.rope.ntk is not None
        self._greedy = greedy_rows(
            rows,
            vocab_size=around.model.spec.decoder.vocab_size,
            history_place=around.padding.slot * around.state.history.shape[1],
        )
        device = around.model.device
        self.words = torch.from_numpy(self.pack([])).to(device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._view()

    def _view(self) -> None:
        """Finds the inputs in `words`."""
        rows, words = self.rows, self.words
        num_vectors = 7 if self._with_rope_levels else 6
        widths = [num_vectors * rows, NUM_LONGS * rows, NUM_FLOATS * rows // 2]
        vectors, longs, floats, ints = words.split_with_sizes([*widths, len(words) - sum(widths)])
        self._slots, self._known, self._slot_mapping, *others = vectors.split_with_sizes(
            [rows] * num_vectors
        )
        self._positions = vectors[3 * rows : 6 * rows].view(3, rows)
        self._levels = others[3] if self._with_rope_levels else None
        short = ints.view(torch.int32)[: (1 + NUM_INTS) * rows].view(1 + NUM_INTS, rows)
        self._contexts = short[0]
        self._settings = RowSettings(
            longs.view(NUM_LONGS, rows),
            short[1:],
            floats.view(torch.float32).view(NUM_FLOATS, rows),
        )

    def pack(self, inputs: Seq[SequenceInput], settings: RowSettings | None = None) -> Array:
        """The inputs of at most B sequences with one new token each, and of padding, as `words`.

        Args:
            inputs: The sequences.
            settings: How to sample them; None = all are greedy, and their tokens are not recorded for penalties.
        """
        around = self._around
        padded = [*inputs, *[around.padding] * (self.rows - len(inputs))]
        levels = self._with_rope_levels
        packed = pack(padded, page_size=around.page_size, with_rope_levels=levels)
        _, contexts, *vectors = packed.arrays[:-3]
        told = self._greedy if settings is None else settings.padded(self._greedy)
        short = np.zeros((1 + NUM_INTS) * self.rows + self.rows % 2, np.int32)
        short[: self.rows] = contexts
        short[self.rows : (1 + NUM_INTS) * self.rows] = told.ints.reshape(-1)
        longs = [*vectors, told.longs, told.floats.reshape(-1).view(np.int64), short.view(np.int64)]
        return np.concatenate([array.reshape(-1) for array in longs])

    def compute(self) -> None:
        """Computes logits and samples tokens, and records these; reads nothing but `words` and what stays."""
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
        self._sample(state, around.model.ops)

    def _sample(self, state: SlotState, ops: Ops) -> None:
        rows = recorded(self._slots, self._settings)
        if self.samples:
            self.token_ids.copy_(choose(self.logits, self._slots, self._settings, state, ops))
        else:
            torch.argmax(self.logits, dim=-1, out=self.token_ids)
            nothing = self._slots[:0]
            rows = SampledRows(self._slots, nothing, nothing, nothing, nothing)
        ops.record_tokens(state, self.token_ids, rows)

    def expected(self, logits: Tensor, state: SlotState) -> Tensor:
        """The tokens that this step must choose from logits [B, V], by the state of the slots before it: [B] int64."""
        if not self.samples:
            return logits.argmax(dim=-1)
        return choose(logits, self._slots, self._settings, state, self._around.model.ops)


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
            The chosen tokens [count] int64 and the logits [count, V] float32; valid until the next step.
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
