"""Linear layers hold their weight in any form; a tied one multiplies by the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from inference_service.kernels.layers import DenseWeight, Embedding, Linear, convert_linears


@dataclass(frozen=True)
class Transposed:
    """[in, out], in memory of its own."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.weight
        return out if self.bias is None else out + self.bias


def transposed(dense: DenseWeight) -> Transposed:
    bias = None if dense.bias is None else dense.bias.detach().clone()
    return Transposed(dense.weight.detach().T.contiguous(), bias)


Layer = TypeVar("Layer", bound=nn.Module)


def filled(layer: Layer) -> Layer:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def plain(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.get_parameter("weight"), layer.get_parameter("bias"))


def test_dense_is_the_default_and_has_the_names_of_checkpoints() -> None:
    layer = filled(Linear(6, 4))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert torch.equal(layer(X), plain(layer, X))
    assert [name for name, _ in Linear(6, 4, bias=False).named_parameters()] == ["weight"]


def test_dense_follows_its_module_to_another_device_and_dtype() -> None:
    layer = filled(Linear(6, 4)).to(torch.float64)
    assert torch.equal(layer(X.double()), plain(layer, X.double()))
    with torch.device("meta"):
        layer = Linear(6, 4)
    layer = filled(layer.to_empty(device="cpu"))
    assert torch.equal(layer(X), plain(layer, X))


def test_another_form_replaces_the_parameters() -> None:
    model = nn.Sequential(filled(Linear(6, 4)), nn.ReLU(), filled(Linear(4, 3, bias=False)))
    expected = model(X)
    convert_linears(model, transposed)
    assert list(model.parameters()) == []
    assert isinstance(model[2].form, Transposed)
    torch.testing.assert_close(model(X), expected)


def test_layers_may_stay_dense() -> None:
    model = nn.Sequential(filled(Linear(6, 4)), filled(Linear(4, 3)))
    convert_linears(model, lambda form: form if form.weight.shape[0] == 4 else transposed(form))
    assert [isinstance(layer.form, DenseWeight) for layer in model] == [True, False]
    assert len(list(model.parameters())) == 2


def test_a_tied_layer_has_the_weight_of_the_embedding_and_leaves_it_there() -> None:
    table = filled(Embedding(4, 6))
    head = Linear(6, 4, bias=False, tied_to=table)
    assert list(head.parameters()) == []
    assert torch.equal(head(X), X @ table.weight.T)
    convert_linears(head, transposed)
    torch.testing.assert_close(head(X), X @ table.weight.T)
    assert torch.equal(table(torch.tensor([2])), table.weight[2:3])


@pytest.mark.parametrize("threads", [1, 4])
def test_layers_are_converted_by_several_threads(threads: int) -> None:
    layers = nn.ModuleList(filled(Linear(6, outputs)) for outputs in range(1, 21))
    expected = [layer(X) for layer in layers]
    convert_linears(layers, transposed, threads=threads)
    assert all(isinstance(layer.form, Transposed) for layer in layers)
    for layer, found in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(X), found)
