"""The paged attention reference equals plain attention over each sequence alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import torch

from inference_service.kernels import attention
from inference_service.kernels.attention import new_kv_cache, paged_attention, write_kv
from tests.support.attention_metadata import attention_metadata


CPU = torch.device("cpu")
HEAD_DIM = 8


def plain_attention(q, k, v, scale):
    """The last n of c tokens of one sequence, written out: q [n, Hq, D], k and v [c, Hkv, D]."""
    n, context = q.shape[0], k.shape[0]
    repeat = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for i in range(n):
        seen = context - n + i + 1
        for head in range(q.shape[1]):
            scores = k[:seen, head // repeat] @ q[i, head] * scale
            out[i, head] = scores.softmax(0) @ v[:seen, head // repeat]
    return out


@st.composite
def batches(draw):
    page_size = draw(st.sampled_from([1, 3, 4, 16]))
    heads = draw(st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3), (7, 1)]))
    lengths = draw(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=6)
    )
    decoding = draw(st.lists(st.integers(0, 70), max_size=6))
    pairs = draw(st.permutations(lengths + [(past, 1) for past in decoding]))
    return page_size, heads, pairs, draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(batches())
def test_equals_plain_attention(batch):
    page_size, (heads, kv_heads), pairs, seed = batch
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    pages_of = [-(-(past + new) // page_size) for past, new in pairs]
    num_pages = sum(pages_of) + 3
    cache = new_kv_cache(
        1, num_pages, page_size, kv_heads, HEAD_DIM, dtype=torch.float32, device=CPU
    )
    cache.fill_(float("nan"))  # what lies beyond a context must never be seen
    k_cache, v_cache = cache[0]
    free = torch.randperm(num_pages, generator=generator).tolist()
    table = torch.zeros(len(pairs), max(pages_of), dtype=torch.int64)
    slots, keys, values, query_start = [], [], [], [0]
    for s, (past, new) in enumerate(pairs):
        pages = torch.tensor([free.pop() for _ in range(pages_of[s])])
        table[s, : len(pages)] = pages
        at = torch.arange(past + new)
        slot = pages[at // page_size] * page_size + at % page_size
        keys.append(noise(past + new, kv_heads, HEAD_DIM))
        values.append(noise(past + new, kv_heads, HEAD_DIM))
        write_kv(keys[-1][:past], values[-1][:past], k_cache, v_cache, slot[:past])
        slots.append(slot[past:])
        query_start.append(query_start[-1] + new)
    q = noise(query_start[-1], heads, HEAD_DIM)
    meta = attention_metadata(torch.cat(slots), table, query_start, [p + n for p, n in pairs])
    new_keys = torch.cat([k[past:] for k, (past, _) in zip(keys, pairs, strict=True)])
    new_values = torch.cat([v[past:] for v, (past, _) in zip(values, pairs, strict=True)])
    write_kv(new_keys, new_values, k_cache, v_cache, meta.slot_mapping)
    got = paged_attention(q, k_cache, v_cache, meta, 0.5)
    for s in range(len(pairs)):
        rows = slice(query_start[s], query_start[s + 1])
        expected = plain_attention(q[rows], keys[s], values[s], 0.5)
        torch.testing.assert_close(got[rows], expected, atol=1e-5, rtol=0)


def test_long_chunks_in_blocks(monkeypatch):
    monkeypatch.setattr(attention, "MASKED_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    for past, new in ((1, 3), (5, 4), (6, 13), (0, 9)):
        keys, values = torch.randn(2, past + new, 2, HEAD_DIM, generator=generator)
        q = torch.randn(new, 4, HEAD_DIM, generator=generator)
        pages = torch.arange(past + new)
        meta = attention_metadata(pages[past:], pages[None], [0, new], [past + new])
        got = paged_attention(q, keys[:, None], values[:, None], meta, 0.3)
        torch.testing.assert_close(got, plain_attention(q, keys, values, 0.3), atol=1e-5, rtol=0)


def test_writing_touches_only_its_slots():
    cache = new_kv_cache(2, 3, 4, 2, HEAD_DIM, dtype=torch.float32, device=CPU)
    k_cache, v_cache = cache[1]
    ones = torch.ones(2, 2, HEAD_DIM)
    write_kv(ones, 2 * ones, k_cache, v_cache, torch.tensor([9, 2]))
    assert cache[0].count_nonzero() == 0
    assert k_cache[2, 1].eq(1).all()
    assert v_cache[0, 2].eq(2).all()
    assert cache[1].sum() == 2 * 2 * HEAD_DIM * (1 + 2)
