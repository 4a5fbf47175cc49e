"""The layers of decoder and vision towers: linear maps in any weight form, embeddings, RMS norm."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from inference_service.kernels.ops import REFERENCE, Ops


def parameter(*shape: int) -> nn.Parameter:
    """An uninitialised parameter without gradient."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class WeightForm(Protocol):
    """The weight of a linear map in any form: dense, packed, quantised."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds in addition to the parameters of modules."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out] in the dtype of `x`, bias included."""


class Embedding(nn.Module):
    """Vectors by id: `weight` [rows, width]. A tied output head multiplies by the same weight."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(rows, width)
        self.bias: nn.Parameter | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 -> [T, width]."""
        return embedding(ids, self.weight)


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """The form in checkpoints: the parameters `weight` [out, in] and `bias` [out] or None of a module.

    They are read from the module in every call, because moving it to a device replaces them.
    """

    module: Linear | Embedding

    @property
    def nbytes(self) -> int:
        """0: the parameters belong to the module."""
        return 0

    @property
    def weight(self) -> torch.Tensor:
        """[out, in]."""
        weight = self.module.weight
        assert weight is not None, "the layer holds its weight in another form"
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[out], if there is one."""
        return self.module.bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight = self.module.weight
        assert weight is not None, "the layer holds its weight in another form"
        return linear(x, weight, self.module.bias)


class Linear(nn.Module):
    """x -> x W^T + b, for W and b in any form.

    A new layer is dense: checkpoints are loaded into its parameters `weight` [out, in] and `bias` [out].

    Attributes:
        form: The weight in its current form.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, tied_to: Embedding | None = None
    ) -> None:
        """Creates a dense layer.

        Args:
            inputs: Size of the last dimension of the input.
            outputs: Size of the last dimension of the output.
            bias: Whether the layer has a bias.
            tied_to: The embedding with the weight; the layer then has no parameters and no bias.
        """
        super().__init__()
        self.weight = None if tied_to else parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias and not tied_to else None
        self.form: WeightForm = DenseWeight(tied_to or self)

    def hold(self, form: WeightForm) -> None:
        """Replace the dense weight and free its memory (except that of an embedding)."""
        self.form = form
        self.weight = self.bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.form.apply(x)


def convert_linears(
    model: nn.Module, convert: Callable[[DenseWeight], WeightForm], *, threads: int = 1
) -> None:
    """Convert the weights of all dense linear layers of a loaded model to another form.

    Args:
        model: Changed in place.
        convert: Returns the new form, or its argument to leave a layer unchanged.
        threads: How many layers are converted at once, the largest ones first.
    """
    dense = {
        module: module.form
        for module in model.modules()
        if isinstance(module, Linear) and isinstance(module.form, DenseWeight)
    }
    layers = sorted(dense, key=lambda layer: dense[layer].weight.numel(), reverse=True)
    with ThreadPoolExecutor(threads) as pool:
        forms = pool.map(convert, map(dense.__getitem__, layers))
        for layer, form in zip(layers, forms, strict=True):
            if form is not layer.form:
                layer.hold(form)


class RMSNorm(nn.Module):
    """RMS norm with a learned `weight` [width]."""

    def __init__(self, width: int, eps: float, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.eps = eps
        self._ops = ops
        self.weight = parameter(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        return self._ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, residual stream) -> (the normalised sum, the sum), all [..., width]."""
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)
