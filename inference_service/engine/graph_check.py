"""Compares a captured step with the step that the engine runs without graphs, on the device.

Runs before the first request: it writes to pages and slots that no sequence has yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from inference_service.engine.graphs import DecodeGraph, Surroundings
from inference_service.engine.inputs import UNKNOWN, SequenceInput, batch_of, pack
from inference_service.engine.staging import Staging
from inference_service.kernels.self_check import difference


_PAGES = 2
"""Full pages of a sequence, at most."""


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
        [words] = self._staging.send([graph.step.pack(inputs)])
        token_ids, logits = graph.run(words, count)
        if cause := difference(logits, expected, around.model.dtype):
            return cause
        if not torch.equal(token_ids, logits.argmax(dim=-1)):
            return "it does not choose the most likely tokens"
        if not torch.equal(last[:count], token_ids):
            return "it does not record its tokens"
        return ""

    def clear(self) -> None:
        """Removes what was written to pages and slots."""
        around = self._around
        around.state.last_tokens.zero_()
        around.state.page_table[: len(self._pages), : len(self._pages[0])] = 0
        for layer in around.kv_cache:
            layer[:, : self._pages[-1].stop] = 0
