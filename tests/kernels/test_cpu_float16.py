"""Weights of 16 bits give the products of float32, and a row that does not depend on the others."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import linear

from inference_service.kernels import cpu_float16
from inference_service.kernels.cpu_float16 import Float16Weight, holds_float16
from inference_service.kernels.layers import DenseWeight, Embedding, Linear


# Neither a multiple of the blocks of the layout.
OUTPUTS, INPUTS = 203, 77
STORED = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if not holds_float16():
        pytest.skip("this build of torch does not compute with 16-bit weights")


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(weight: torch.Tensor, *, bias: bool = False) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.get_parameter("weight").data = weight.float()
    if bias:
        layer.get_parameter("bias").data = random(len(weight), seed=3)
    return layer


def held(layer: Linear) -> Float16Weight | None:
    assert isinstance(layer.form, DenseWeight)
    return Float16Weight.of(layer.form)


def assert_product(layer: Linear, form: Float16Weight | None, x: torch.Tensor) -> None:
    assert form is not None
    found = form.apply(x)
    weight = layer.get_parameter("weight").double()
    bias = None if layer.bias is None else layer.bias.double()
    exact = linear(x.double(), weight, bias)
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    # Of a sum of n terms in float32, one after the other.
    terms = linear(x.double().abs(), weight.abs())
    assert ((found.double() - exact).abs() <= math.sqrt(INPUTS) * 2**-23 * (terms + 1)).all()


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(INPUTS,), (0, INPUTS), (1, INPUTS), (3, INPUTS), (300, INPUTS), (2, 5, INPUTS)]
)
def test_products(dtype: torch.dtype, *, bias: bool, shape: tuple[int, ...]) -> None:
    layer = layer_of(random(OUTPUTS, INPUTS).to(dtype), bias=bias)
    with torch.inference_mode():
        assert_product(layer, held(layer), random(*shape, seed=2))


@pytest.mark.parametrize("bias", [False, True])
def test_the_rows_of_a_large_weight_are_packed_in_parts(
    monkeypatch: pytest.MonkeyPatch, *, bias: bool
) -> None:
    monkeypatch.setattr(cpu_float16, "_ROWS", 64)
    layer = layer_of(random(OUTPUTS, INPUTS).bfloat16(), bias=bias)
    form = held(layer)
    assert form is not None
    assert len(form.parts) == 4
    assert_product(layer, form, random(5, INPUTS))


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e-4, 1e3, 1e6, 1e30])
def test_weights_of_any_size_are_exact(factor: float) -> None:
    """Far outside of the range of float16, and with values that are far apart."""
    weight = (random(OUTPUTS, INPUTS) * factor).bfloat16()
    weight[0] *= 2.0**-14
    weight[1] = 0
    weight[2, :5] = 0
    layer = layer_of(weight)
    x = random(4, INPUTS)
    form = held(layer)
    assert form is not None
    exact = linear(x.double(), layer.get_parameter("weight").double())
    norms = linear(x.double().abs(), layer.get_parameter("weight").double().abs())
    assert ((form.apply(x).double() - exact).abs() <= math.sqrt(INPUTS) * 2**-23 * norms).all()


def test_a_weight_of_zeros() -> None:
    layer = layer_of(torch.zeros(OUTPUTS, INPUTS))
    assert_product(layer, held(layer), random(2, INPUTS))


@pytest.mark.parametrize("value", [1 / 3, 1 + 2**-11, math.nan, math.inf])
def test_weights_that_are_refused(value: float) -> None:
    """One that is not a number of 16 bits is enough."""
    weight = random(OUTPUTS, INPUTS).bfloat16().float().clamp(-2, 2)
    assert held(layer_of(weight)) is not None
    weight[-1, 5] = value
    assert held(layer_of(weight)) is None


def test_a_row_does_not_depend_on_the_others() -> None:
    layer = layer_of(random(OUTPUTS, INPUTS).bfloat16(), bias=True)
    form = held(layer)
    assert form is not None
    x = random(70, INPUTS)
    x[1:] *= 1000
    whole = form.apply(x)
    for row in range(len(x)):
        assert form.apply(x[row : row + 1]).equal(whole[row : row + 1])
    for rows in (2, 5, 14, 15, 40):
        assert form.apply(x[:rows]).equal(whole[:rows])


def test_strided_inputs() -> None:
    layer = layer_of(random(OUTPUTS, INPUTS).bfloat16())
    form = held(layer)
    assert_product(layer, form, random(INPUTS, 9).T)
    assert_product(layer, form, random(4, 2 * INPUTS)[:, INPUTS:])


def test_the_memory_of_the_weight() -> None:
    form = held(layer_of(random(OUTPUTS, INPUTS).bfloat16(), bias=True))
    assert form is not None
    assert form.nbytes == 2 * OUTPUTS * INPUTS + 4 * OUTPUTS


def test_a_tied_head_leaves_the_embedding() -> None:
    table = Embedding(OUTPUTS, INPUTS)
    table.weight.data = random(OUTPUTS, INPUTS).bfloat16().float()
    head = Linear(INPUTS, OUTPUTS, bias=False, tied_to=table)
    form = Float16Weight.of(DenseWeight(table))
    assert form is not None
    head.hold(form)
    x = random(3, INPUTS)
    torch.testing.assert_close(head(x), x @ table.weight.T)
    assert table(torch.tensor([5])).equal(table.weight[5:6])
