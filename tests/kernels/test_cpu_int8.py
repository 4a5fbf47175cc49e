"""Weights in 8-bit integers: the error of a product, and a row that does not depend on the others."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from inference_service.kernels.cpu_int8 import Int8Weight, computes_int8
from inference_service.kernels.layers import DenseWeight, Linear


# Neither a multiple of the blocks of the layout.
OUTPUTS, INPUTS = 203, 77
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _needs_the_instructions() -> None:
    if not computes_int8():
        pytest.skip("this processor has no instructions for products of 8-bit integers")


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(dtype: torch.dtype, *, bias: bool) -> Linear:
    layer = Linear(INPUTS, OUTPUTS, bias=bias)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=seed).to(dtype)
    return layer


def quantised(layer: Linear) -> Int8Weight:
    assert isinstance(layer.form, DenseWeight)
    return Int8Weight.of(layer.form)


def quantised_product(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    """The product of both sides rounded to their 8 bits, in float64."""

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.float()
        scales = rows.abs().amax(-1, keepdim=True) / 127
        return ((rows / scales).round() * scales).double()

    bias = None if layer.bias is None else layer.bias.double()
    return linear(rounded(x), rounded(layer.get_parameter("weight")), bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(INPUTS,), (0, INPUTS), (1, INPUTS), (3, INPUTS), (300, INPUTS), (2, 5, INPUTS)]
)
def test_the_product_of_rounded_rows(
    dtype: torch.dtype, *, bias: bool, shape: tuple[int, ...]
) -> None:
    layer = layer_of(dtype, bias=bias)
    x = random(*shape).to(dtype)
    with torch.inference_mode():
        found = quantised(layer).apply(x)
    assert (found.dtype, found.shape) == (dtype, (*shape[:-1], OUTPUTS))
    if x.numel():
        expected = quantised_product(layer, x)
        limit = 1e-3 if dtype == torch.float32 else 2**-7
        assert (found.double() - expected).abs().max() <= limit * expected.abs().max()


def test_the_error_is_that_of_eight_bits() -> None:
    layer, x = layer_of(torch.float32, bias=False), random(64, INPUTS)
    exact = linear(x, layer.get_parameter("weight"))
    error = quantised(layer).apply(x) - exact
    assert 0 < error.norm() / exact.norm() < 0.02


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 257])
def test_a_row_does_not_depend_on_its_neighbours(rows: int) -> None:
    form, x = quantised(layer_of(torch.float32, bias=True)), random(1, INPUTS)
    alone = form.apply(x)
    loud = random(rows, INPUTS, seed=2) * 1e4
    loud[rows // 2] = x[0]
    assert torch.equal(form.apply(loud)[rows // 2], alone[0])


def test_rows_of_zeros_and_of_no_numbers() -> None:
    form, x = quantised(layer_of(torch.float32, bias=False)), random(4, INPUTS)
    x[0], x[1, 3], x[2, 5] = 0, torch.nan, torch.inf
    found = form.apply(x)
    assert not found[0].any()
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[3], form.apply(x[3]))


def test_a_row_of_the_weight_that_is_zero() -> None:
    layer = layer_of(torch.float32, bias=False)
    layer.get_parameter("weight").data[7] = 0
    found = quantised(layer).apply(random(2, INPUTS))
    assert found.isfinite().all()
    assert not found[:, 7].any()


def test_inputs_of_any_layout_and_size() -> None:
    form, x = quantised(layer_of(torch.float32, bias=False)), random(INPUTS, 9)
    assert torch.equal(form.apply(x.T), form.apply(x.T.contiguous()))
    for scale in (1e-20, 1e20):
        assert torch.allclose(form.apply(x.T * scale), form.apply(x.T) * scale, rtol=1e-3)


def test_bytes() -> None:
    form = quantised(layer_of(torch.bfloat16, bias=True))
    assert form.nbytes == OUTPUTS * INPUTS + 3 * 4 * OUTPUTS
