"""Kernels over rows equal their references, for widths that are no powers of two and for strided inputs."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels import rms_norm, rope, silu_and_mul


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    # The interpreter cuts bfloat16 instead of rounding it, as often as the reference rounds.
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2**-5}[found.dtype]
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit / 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (3, 80), (2, 3, 48)])
def test_norms(rows, dtype, shape):
    x, residual = noise(*shape, dtype=dtype), noise(*shape, dtype=dtype, seed=1)
    weight = noise(shape[-1], dtype=dtype, seed=2)
    assert_close(rows.rms_norm(x, weight, 1e-5), rms_norm.rms_norm(x, weight, 1e-5))
    found = rows.add_rms_norm(x, residual, weight, 1e-5)
    expected = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_of_heads_within_a_fused_projection(rows, dtype):
    x = noise(4, 10, 24, dtype=dtype).split((6, 2, 2), dim=1)[1]
    weight = noise(24, dtype=dtype, seed=2)
    assert_close(rows.rms_norm(x, weight, 1e-6), rms_norm.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [5, 64, 1100])
def test_gate(rows, dtype, width):
    x = noise(3, 2 * width, dtype=dtype)
    assert_close(rows.silu_and_mul(x), silu_and_mul.silu_and_mul(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize(("width", "pairs"), [(16, 8), (80, 40), (24, 6)])
def test_rotation(rows, dtype, adjacent, width, pairs):
    x = noise(3, 8, width, dtype=dtype).split((5, 2, 1), dim=1)[0]
    angles = noise(3, pairs, dtype=torch.float32, seed=1)
    tables = angles.cos(), angles.sin()
    found = rows.apply_rope(x, *tables, adjacent_pairs=adjacent)
    assert_close(found, rope.apply_rope(x, *tables, adjacent_pairs=adjacent))


def test_no_rows(rows):
    empty = torch.empty(0, 16)
    assert rows.rms_norm(empty, torch.ones(16), 1e-5).shape == (0, 16)
    assert rows.silu_and_mul(empty).shape == (0, 8)
    assert rows.apply_rope(torch.empty(0, 2, 8), *[torch.empty(0, 4)] * 2).shape == (0, 2, 8)
