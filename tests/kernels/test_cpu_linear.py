"""Packed weights compute what the dense ones do, in every shape of input, and a row does not depend on the others."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from inference_service.kernels.cpu_linear import PackedWeight, can_pack
from inference_service.kernels.layers import DenseWeight, Embedding, Linear


DTYPES = [torch.float32, torch.bfloat16]
# Neither a multiple of the blocks of the layout.
OUTPUTS, INPUTS = 203, 77


def packed(dtype: torch.dtype, *, bias: bool) -> tuple[Linear, PackedWeight]:
    if not can_pack(dtype):
        pytest.skip(f"this processor does not pack {dtype}")
    generator = torch.Generator().manual_seed(0)
    layer = Linear(INPUTS, OUTPUTS, bias=bias)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    form = layer.form
    assert isinstance(form, DenseWeight)
    return layer, PackedWeight.of(form)


def exact_of(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return linear(x.double(), layer.get_parameter("weight").double(), bias)


def assert_close(found: torch.Tensor, exact: torch.Tensor) -> None:
    limit = 1e-5 if found.dtype == torch.float32 else 2**-7
    assert (found.double() - exact).abs().max() <= limit * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(INPUTS,), (0, INPUTS), (1, INPUTS), (3, INPUTS), (300, INPUTS), (2, 5, INPUTS)]
)
def test_packed_is_dense(dtype: torch.dtype, *, bias: bool, shape: tuple[int, ...]) -> None:
    layer, form = packed(dtype, bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        found = form.apply(x)
    assert (found.dtype, found.shape) == (dtype, (*shape[:-1], OUTPUTS))
    exact = exact_of(layer, x)
    if found.numel():
        assert_close(found, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs(dtype: torch.dtype) -> None:
    layer, form = packed(dtype, bias=True)
    x = torch.randn(INPUTS, 9, generator=torch.Generator().manual_seed(1)).to(dtype).T
    exact = exact_of(layer, x)
    assert_close(form.apply(x), exact)
    wide = torch.randn(4, 2 * INPUTS, generator=torch.Generator().manual_seed(2)).to(dtype)
    half = wide[:, INPUTS:]
    assert_close(form.apply(half), exact_of(layer, half))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_depends_on_the_others_by_rounding_only(dtype: torch.dtype) -> None:
    layer, form = packed(dtype, bias=True)
    x = torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[1:] *= 1000  # as with one scale for all rows, which a loud neighbour would take
    exact = exact_of(layer, x[:1])
    for rows in (1, 2, 5, 40):
        assert_close(form.apply(x[:rows])[:1], exact)


def test_the_memory_of_the_packed_weight_is_known() -> None:
    _, form = packed(torch.float32, bias=True)
    dense = 4 * (OUTPUTS * INPUTS + OUTPUTS)
    assert dense <= form.nbytes <= 4 * (256 * 128 + OUTPUTS)


def test_a_tied_head_leaves_the_embedding() -> None:
    table = Embedding(OUTPUTS, INPUTS)
    table.weight.data = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    head = Linear(INPUTS, OUTPUTS, bias=False, tied_to=table)
    head.hold(PackedWeight.of(DenseWeight(table)))
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(1))
    assert_close(head(x), x.double() @ table.weight.double().T)
    assert table(torch.tensor([5])).equal(table.weight[5:6])


def test_half_precision_is_never_packed() -> None:
    assert not can_pack(torch.float16)
    assert not can_pack(torch.float64)
