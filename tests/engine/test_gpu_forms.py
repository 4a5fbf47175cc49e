"""Layers get the kernel for few rows where it is measured to be faster, up to the rows for which it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from inference_service.engine.gpu_forms import launched_s, multiply_skinny
from inference_service.kernels.layers import DenseWeight, Embedding, Linear
from inference_service.kernels.ops import REFERENCE
from inference_service.kernels.skinny_linear import MAX_ROWS, SkinnyWeight


class Model(nn.Module):
    """Two layers of one shape, one with a bias, and a head that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Linear(8, 12, bias=False), Linear(8, 12, bias=False)
        self.biased = Linear(8, 12)
        self.embedding = Embedding(20, 8)
        self.head = Linear(8, 20, bias=False, tied_to=self.embedding)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def nbytes(self) -> int:
        forms = sum(one.form.nbytes for one in self.modules() if isinstance(one, Linear))
        return forms + sum(parameter.nbytes for parameter in self.parameters())


class Kernel:
    """Counts the rows that it is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.splits: set[int] = set()

    def __call__(self, x, weight, bias, splits):
        self.rows.append(len(x))
        self.splits.add(splits)
        return REFERENCE.skinny_linear(x, weight, bias, splits)


def measured(kernel: Kernel, limit: int):
    """The kernel is best with four splits, and faster than torch up to `limit` rows."""

    def measure(weights: Sequence[DenseWeight], rows: int, multiply) -> float:
        kernel.rows.clear()
        kernel.splits.clear()
        multiply(torch.ones(rows, 8), weights[0].weight, weights[0].bias)
        if not kernel.rows:
            return 1.0
        return (0.5 if rows <= limit else 2.0) + 0.01 * abs(4 - kernel.splits.pop())

    return measure


@pytest.mark.parametrize(("limit", "max_rows"), [(0, 0), (1, 1), (4, 4), (99, MAX_ROWS)])
def test_layers_get_the_kernel_where_it_is_faster(limit: int, max_rows: int) -> None:
    model, kernel = Model(), Kernel()
    layers = [model.first, model.second, model.biased, model.head]
    inputs = [
        torch.randn(2, 1, 8),
        torch.randn(1, 8),
        torch.randn(9, 8),
        torch.randn(40, 8),
        torch.randn(0, 8),
    ]
    expected = [layer(x) for layer in layers for x in inputs]
    before = model.nbytes()
    multiply_skinny(model, replace(REFERENCE, skinny_linear=kernel), measured(kernel, limit))
    assert {isinstance(layer.form, SkinnyWeight) for layer in layers} == {max_rows > 0}
    assert model.nbytes() == before
    kernel.rows.clear()
    kernel.splits.clear()
    for found, one in zip([layer(x) for layer in layers for x in inputs], expected, strict=True):
        assert torch.equal(found, one)
    assert kernel.rows == 4 * [rows for rows in (2, 1, 9) if rows <= max_rows]
    assert kernel.splits <= {4}


def test_without_a_kernel_nothing_is_measured() -> None:
    model = Model()
    multiply_skinny(model, REFERENCE, lambda *_: pytest.fail("measured"))
    assert isinstance(model.first.form, DenseWeight)


def test_what_cannot_be_measured_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def failing(*_: object) -> float:
        raise torch.OutOfMemoryError("no memory")

    model = Model()
    multiply_skinny(model, replace(REFERENCE, skinny_linear=Kernel()), failing)
    assert isinstance(model.first.form, DenseWeight)
    assert "OutOfMemoryError: no memory" in caplog.text


def test_wide_layers_are_not_divided() -> None:
    """Their parts would take as much memory as a cache."""
    wide, kernel = Linear(1, 2**17, bias=False), Kernel()
    nn.init.normal_(wide.get_parameter("weight"))
    asked: list[set[int]] = []

    def measure(weights: Sequence[DenseWeight], rows: int, multiply) -> float:
        kernel.splits.clear()
        multiply(torch.ones(1, 1), weights[0].weight, None)
        asked.append(set(kernel.splits))
        return 1.0

    multiply_skinny(nn.ModuleList([wide]), replace(REFERENCE, skinny_linear=kernel), measure)
    assert set().union(*asked) == {1, 2}


def test_the_time_of_all_weights() -> None:
    model, kernel = Model(), Kernel()
    weights = [DenseWeight(model.first), DenseWeight(model.second)]
    assert launched_s(weights, 3, lambda x, w, b: kernel(x, w, b, 1)) > 0
    assert set(kernel.rows) == {3}
    assert len(kernel.rows) % 2 == 0
