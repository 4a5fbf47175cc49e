"""Paged attention equals the reference; what no sequence owns holds NaN, and so does memory before it is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from inference_service.families import footprint
from inference_service.kernels import attention as reference
from tests.support.attention_metadata import attention_metadata


CPU = torch.device("cpu")
HEADS = [(2, 2), (8, 2), (5, 1), (6, 1), (7, 1), (8, 1), (16, 1)]
"""1, 4, 5, 6, 7, 8 and 16 queries to a key."""


class Case:
    """Sequences (past, new) with their caches, of which the new tokens are not yet written."""

    def __init__(
        self,
        sequences: Sequence[tuple[int, int]],
        heads: tuple[int, int],
        head_dim: int,
        *,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        num_heads, kv_heads = heads
        counts = [-(-sum(sequence) // page_size) for sequence in sequences]
        free = torch.randperm(sum(counts) + 2, generator=generator).tolist()
        shape = (1, sum(counts) + 2, page_size, kv_heads, head_dim)
        self.caches = reference.new_kv_cache(*shape, dtype=dtype, device=CPU).fill_(torch.nan)[0]
        # Not zeros behind the pages of a sequence: whoever reads them gets NaN.
        table = torch.full((len(sequences), max(counts) + 1), free.pop(), dtype=torch.int64)
        slots, start = [], [0]
        for row, (past, new), count in zip(table, sequences, counts, strict=True):
            row[:count] = torch.tensor([free.pop() for _ in range(count)])
            places = torch.arange(past + new)
            slot = row[places // page_size] * page_size + places % page_size
            old = torch.randn(2, past, kv_heads, head_dim, generator=generator).to(dtype)
            reference.write_kv(old[0], old[1], self.caches[0], self.caches[1], slot[:past])
            slots.append(slot[past:])
            start.append(start[-1] + new)
        contexts = [past + new for past, new in sequences]
        self.meta = attention_metadata(torch.cat(slots), table, start, contexts)
        rows = torch.randn(start[-1], num_heads + 2 * kv_heads, head_dim, generator=generator)
        # As the model has them: parts of one fused projection.
        self.q, self.k, self.v = rows.to(dtype).split((num_heads, kv_heads, kv_heads), dim=1)
        self.scale = head_dim**-0.5

    def check(self, attention, monkeypatch: pytest.MonkeyPatch) -> None:
        slots = self.meta.slot_mapping
        reference.write_kv(self.k, self.v, self.caches[0], self.caches[1], slots)
        arguments = (self.q, self.caches[0], self.caches[1], self.meta, self.scale)
        expected = reference.paged_attention(*arguments)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        found = attention.paged_attention(*arguments)
        limit = 2e-6 if self.q.dtype == torch.float32 else 2e-3
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("heads", HEADS)
def test_decode_of_any_number_of_queries_to_a_key(attention, monkeypatch, heads):
    Case([(0, 1), (15, 1), (16, 1), (70, 1)], heads, 64).check(attention, monkeypatch)


@pytest.mark.parametrize("head_dim", [80, 128, 256])
def test_decode_of_any_width(attention, monkeypatch, head_dim):
    Case([(40, 1), (3, 1)], (6, 2), head_dim).check(attention, monkeypatch)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_any_number_of_splits_with_empty_ones(attention, monkeypatch, splits):
    """Each sequence has as many parts of 32 keys as it needs, at most so many; the others write nothing."""
    monkeypatch.setattr(attention, "num_splits", lambda *_: splits)
    monkeypatch.setattr(attention, "_SPLIT_KEYS", 32)
    Case([(0, 1), (33, 1), (130, 1)], (4, 2), 16).check(attention, monkeypatch)


@pytest.mark.full
def test_a_graph_has_the_splits_of_the_longest_context(attention, monkeypatch):
    """Then the longest context is that of the model, whatever the sequences have, and nothing is on the host."""
    case = Case([(0, 1), (600, 1), (40, 1)], (4, 2), 16)
    case.meta.max_context_len = 33_000
    case.meta.page_table = torch.cat([case.meta.page_table, torch.full((3, 9), 10**6)], 1).int()
    case.check(attention, monkeypatch)
    arguments = (case.q, case.caches[0], case.caches[1], case.meta, case.scale)
    expected = attention.paged_attention(*arguments)
    case.meta.host_query_start = case.meta.host_context_lens = np.empty(0, np.int32)
    assert torch.equal(attention.paged_attention(*arguments), expected)


def test_long_contexts_are_split(attention):
    assert [attention.num_splits(n, 4) for n in (1, 512, 513, 33_000)] == [1, 1, 2, 32]
    assert [attention.num_splits(33_000, n) for n in (64, 65, 256, 5000)] == [32, 31, 8, 1]
    assert footprint.MAX_KEY_SPLITS == attention._MAX_SPLITS


@pytest.mark.parametrize("heads", HEADS)
def test_prefill_of_any_number_of_queries_to_a_key(attention, monkeypatch, heads):
    Case([(0, 5), (19, 1), (30, 3)], heads, 16).check(attention, monkeypatch)


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_prefill_of_any_width(attention, monkeypatch, head_dim):
    Case([(0, 40), (5, 2)], (2, 1), head_dim).check(attention, monkeypatch)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("new", [1, 35])
def test_pages_of_any_size(attention, monkeypatch, page_size, new):
    case = Case([(10, new), (0, 1)], (2, 1), 16, page_size=page_size)
    case.check(attention, monkeypatch)


@pytest.mark.parametrize("new", [1, 7])
def test_half_precision(attention, monkeypatch, new):
    case = Case([(20, new), (2, 1)], (4, 2), 32, dtype=torch.float16)
    case.check(attention, monkeypatch)
