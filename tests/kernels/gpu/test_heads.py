"""Norms, rotation and the write into pages in one kernel equal the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_service.kernels import heads as reference
from inference_service.kernels.attention import new_kv_cache
from inference_service.kernels.heads import HeadNorms, Rotation


CPU = torch.device("cpu")
TOKENS, PAGES, PAGE_SIZE = 5, 3, 4
SLOTS = torch.tensor([0, 11, 3, 7, 6])
GROUPS = [(2, 2), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (16, 1)]
"""1, 4, 5, 6, 7, 8 and 16 queries to a key."""
SAMPLE = [
    ((2, 2, 64), False, torch.float32),
    ((7, 1, 80), True, torch.float16),
    ((6, 1, 128), True, torch.bfloat16),
    ((3, 1, 256), False, torch.float16),
]
GRID = [(*heads, dim) for heads in GROUPS for dim in (64, 80, 128, 256)]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def check(
    kernel, sizes, dtype: torch.dtype, *, norm: bool, rotated: int, scaled: bool, adjacent: bool
) -> None:
    queries, keys, dim = sizes
    angles = noise(TOKENS, rotated // 2)
    rotation = Rotation(angles.cos(), angles.sin(), None, adjacent)
    if scaled:
        rotation = replace(rotation, query_scale=noise(TOKENS).abs())
    weights = noise(2, dim, dtype=dtype)
    norms = HeadNorms(weights[0], weights[1], 1e-6) if norm else None
    # As the projection gives them: rows of a wider tensor.
    fused = noise(TOKENS, (queries + 2 * keys) * dim + 16, dtype=dtype)
    heads = fused[:, : (queries + 2 * keys) * dim].unflatten(1, (-1, dim))
    results = []
    for run in (reference.rotate_and_write, kernel.rotate_and_write):
        caches = new_kv_cache(1, PAGES, PAGE_SIZE, keys, dim, dtype=dtype, device=CPU)[0]
        caches.fill_(-3.0)
        q = run(heads, norms, rotation, (caches[0], caches[1]), SLOTS)
        results.append((q, caches))
    (expected, expected_caches), (found, caches) = results
    # The interpreter cuts bfloat16 instead of rounding it, as often as the reference rounds.
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2**-4}[dtype]
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)
    torch.testing.assert_close(caches, expected_caches, rtol=limit, atol=limit)
    # Values are copied, and what is in no slot stays.
    assert torch.equal(caches[1], expected_caches[1])
    unused = torch.ones(PAGES * PAGE_SIZE, dtype=torch.bool)
    unused[SLOTS] = False
    assert bool((caches.flatten(1, 2)[:, unused] == -3.0).all())


@pytest.mark.parametrize(("sizes", "norm", "dtype"), SAMPLE)
def test_any_heads(heads, sizes, norm, dtype):
    check(heads, sizes, dtype, norm=norm, rotated=sizes[2], scaled=False, adjacent=False)


@pytest.mark.full
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("sizes", GRID)
def test_every_shape(heads, sizes, norm):
    check(heads, sizes, torch.float16, norm=norm, rotated=sizes[2], scaled=False, adjacent=False)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("adjacent", "rotated"), [(False, 32), (True, 32), (True, 16), (False, 10)]
)
def test_any_rotation(heads, adjacent, rotated, norm):
    sizes, scaled = (3, 2, 32), rotated != 16
    check(heads, sizes, torch.float32, norm=norm, rotated=rotated, scaled=scaled, adjacent=adjacent)


def test_no_tokens(heads):
    cache = new_kv_cache(1, 1, 4, 1, 8, dtype=torch.float32, device=CPU)[0]
    rotation = Rotation(torch.empty(0, 4), torch.empty(0, 4))
    none = torch.empty(0, dtype=torch.int64)
    caches = (cache[0], cache[1])
    found = heads.rotate_and_write(torch.empty(0, 4, 8), None, rotation, caches, none)
    assert found.shape == (0, 2, 8)
