"""Compares a captured step with the step that the engine runs without graphs, on the device.

Runs before the first request: it writes to pages and slots that no sequence has yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.graphs import DecodeGraph, Surroundings
from inference_service.engine.inputs import UNKNOWN, SequenceInput, batch_of, pack
from inference_service.engine.row_settings import RowSettings
from inference_service.engine.staging import Staging
from inference_service.kernels.self_check import difference
from inference_service.kernels.slot_state import SlotState


_PAGES = 2
"""Full pages of a sequence, at most."""


def some_settings(count: int, state: SlotState) -> RowSettings:
    """Settings of every kind, for the first slots."""
    row = np.arange(count)
    (_, length), (count_rows, vocab_size) = state.history.shape, state.counts.shape
    counted = (row % 3 == 1) & (row + 1 < count_rows)
    penalised = counted | (row % 5 == 2)
    drawn = row % 4 > 0
    floats = [
        np.where(drawn, 0.5 + row / count, 1.0),
        np.where(drawn & (row % 6 == 3), -2.0, -np.inf),
        np.where(drawn & (row % 3 > 0), 0.9, 1.0),
        np.where(penalised, 1.2, 1.0),
        np.where(counted, 0.3, 0.0),
        np.where(counted, 0.1, 0.0),
    ]
    return RowSettings(
        np.stack(
            (
                row * length + 1 % length,
                np.where(counted, (row + 1) * vocab_size, 0),
                np.where(drawn & (row % 2 == 0), min(20, vocab_size), vocab_size),
            )
        ),
        np.stack((7919 * row, 104_729 * row, penalised, drawn)).astype(np.int32),
        np.stack(floats).astype(np.float32),
    )


def _is_recorded(
    token_ids: Tensor, settings: RowSettings, before: SlotState, after: SlotState
) -> bool:
    """Whether history and counts have the tokens of all rows."""
    places, bases, _ = torch.from_numpy(settings.longs).to(token_ids.device)
    counted = bases + token_ids
    added = (bases > 0).int()
    return torch.equal(
        after.history.view(-1)[places], token_ids.to(after.history.dtype)
    ) and torch.equal(after.counts.view(-1)[counted], before.counts.view(-1)[counted] + added)


class GraphCheck:
    """Short sequences of all lengths up to some pages, whose prompts are computed, and which have one token more."""

    def __init__(
        self, sizes: Seq[int], around: Surroundings, *, num_pages: int, max_tokens: int
    ) -> None:
        """Computes the prompts.

        Args:
            sizes: The sizes of all graphs.
            around: What their steps share.
            num_pages: Pages of the cache that sequences may have.
            max_tokens: Maximum number of tokens of a step.
        """
        self._sizes = sorted(sizes)
        self._around = around
        self._staging = Staging(around.model.device)
        count, page_size = self._sizes[-1], around.page_size
        pages_each = min(_PAGES + 1, num_pages // count)
        longest = min(
            _PAGES * page_size + 1,
            max_tokens // count,
            pages_each * page_size - 1,
            around.max_model_len - 1,
        )
        self._pages = [range(i * pages_each, (i + 1) * pages_each) for i in range(count)]
        table = torch.arange(count * pages_each, dtype=torch.int32).view(count, pages_each)
        around.state.page_table[:count, :pages_each] = table.to(around.model.device)
        vocab_size = around.model.spec.decoder.vocab_size
        self._prompts = [
            self._input(row, [(7 * row + 11 * place) % vocab_size for place in range(length)], 0)
            for row, length in enumerate(max(1, longest - row % longest) for row in range(count))
        ]
        self._forward(self._prompts)

    def _input(self, row: int, token_ids: Seq[int], start: int) -> SequenceInput:
        return SequenceInput(token_ids, start, self._pages[row], row, delta=row % 5)

    def _forward(self, inputs: Seq[SequenceInput]) -> Tensor:
        """The step without graphs: [T, hidden]."""
        around = self._around
        levels = around.model.spec.decoder.rope.ntk is not None
        packed = pack(inputs, page_size=around.page_size, with_rope_levels=levels)
        batch = batch_of(packed, self._staging.send(packed.arrays), around.state)
        return around.model.forward(batch, around.kv_cache)

    def defect(self, graph: DecodeGraph) -> str:
        """How a graph differs, in one line; empty if it does not. It has as much padding as it ever has."""
        around, rows = self._around, graph.step.rows
        smaller = bisect_left(self._sizes, rows)
        count = self._sizes[smaller - 1] + 1 if smaller else 1
        last = around.state.last_tokens
        last[:count] = torch.arange(count, device=last.device)
        inputs = [
            self._input(row, [UNKNOWN if row % 2 else row], len(self._prompts[row].token_ids))
            for row in range(count)
        ]
        expected = around.model.logits(self._forward(inputs))
        settings = some_settings(count, around.state) if graph.step.samples else None
        [words] = self._staging.send([graph.step.pack(inputs, settings)])
        before = replace(
            around.state, history=around.state.history.clone(), counts=around.state.counts.clone()
        )
        token_ids, logits = graph.run(words, count)
        if cause := difference(logits, expected, around.model.dtype):
            return cause
        if not torch.equal(token_ids, graph.step.expected(graph.step.logits, before)[:count]):
            return "it does not choose the tokens of the sampler"
        if not torch.equal(last[:count], token_ids) or (
            settings is not None and not _is_recorded(token_ids, settings, before, around.state)
        ):
            return "it does not record its tokens"
        return ""

    def clear(self) -> None:
        """Removes what was written to pages and slots."""
        around = self._around
        for one in (around.state.last_tokens, around.state.history, around.state.counts):
            one.zero_()
        around.state.page_table[: len(self._pages), : len(self._pages[0])] = 0
        for layer in around.kv_cache:
            layer[:, : self._pages[-1].stop] = 0
