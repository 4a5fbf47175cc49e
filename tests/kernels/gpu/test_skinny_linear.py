"""The linear map of few rows equals torch's, and a row of it does not depend on the others."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels.skinny_linear import SPLITS
from inference_service.kernels.skinny_linear import skinny_linear as reference


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def check(kernel, rows: int, shape: tuple[int, int], splits: int, *, biased: bool) -> None:
    outputs, inputs = shape
    x = noise(rows, inputs + 16)[:, :inputs]
    weight = noise(outputs, inputs, seed=1) / inputs**0.5
    bias = noise(outputs, seed=2) if biased else None
    found = kernel.skinny_linear(x, weight, bias, splits)
    expected = reference(x.float(), weight.float(), None if bias is None else bias.float(), splits)
    torch.testing.assert_close(found, expected.half(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("rows", "shape", "splits"),
    [(1, (64, 64), 1), (3, (100, 200), 2), (16, (70, 1000), 4), (5, (33, 65), 16)],
)
def test_any_shape(skinny_linear, rows, shape, splits, biased):
    check(skinny_linear, rows, shape, splits, biased=biased)


@pytest.mark.full
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("shape", [(2048, 1536), (1536, 1536), (448, 3584), (1100, 50)])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_shapes_of_models(skinny_linear, rows, shape, splits):
    check(skinny_linear, rows, shape, splits, biased=rows == 4)


@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_does_not_depend_on_the_others(skinny_linear, splits):
    x, weight = noise(16, 300), noise(80, 300, seed=1)
    together = skinny_linear.skinny_linear(x, weight, None, splits)
    for count in (1, 2, 7):
        alone = skinny_linear.skinny_linear(x[:count], weight, None, splits)
        assert torch.equal(alone, together[:count])
